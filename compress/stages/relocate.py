"""Padding moves to the front of linear segments that are faster as one layer, so that merging them later is exact at the border.

The values at the border change; fine-tuning follows.
"""

from __future__ import annotations

from dataclasses import dataclass

from compress.artifact import Artifact, apply
from compress.edits import Plan
from compress.edits import Relocate as Edit
from compress.entropy.spans import Span, choose
from compress.recipe import Recipe
from compress.selection.merge_candidates import candidates
from compress.stage import Context, Decides, Traits


@dataclass(frozen=True)
class Relocate:
    """The stage."""

    name: str = "relocate"
    traits: Traits = Traits(Decides.BEFORE_TRAINING, races=True)

    def needed(self, recipe: Recipe) -> bool:
        return recipe.epochs > 0  # without training, what moved padding does to the border would stay

    def check(self, artifact: Artifact, context: Context) -> None:
        """A model without anything to merge passes unchanged."""

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        found = candidates(
            artifact, context.race, lambda one: not one.activations, lambda share: context.progress("time segments", share, "")
        )
        # Gains only: moving padding has no loss that could be told before training.
        chosen = [found.candidates[i] for i in choose([Span(c.start, c.stop, c.gain, 0.0) for c in found.candidates], 0.0)]
        edits = tuple(Edit(layers) for one in chosen for layers in one.segment.relocate)
        return apply(Plan(edits), artifact) if edits else artifact
