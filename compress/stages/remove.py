"""Remove channels, and reconstruct every layer that is left by least squares.

    which channels stay (`selection.choice`) -> surgery -> every layer refitted in the order of the graph

The refit is the same for all selectors, so that methods differ in *which* channels go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compress.artifact import Artifact, apply
from compress.edits import Keep, Plan
from compress.graph.channels.solve import Group
from compress.recipe import DEFAULT_TARGET, Recipe
from compress.refit import refit
from compress.selection import budget
from compress.selection.channels import Losses
from compress.selection.choice import Choice, Selector
from compress.stage import Context, Decides, Traits


@dataclass(frozen=True)
class Remove:
    """The stage; its first four fields are those of `selection.choice.Choice`."""

    selector: Selector = "entropic"
    groups: tuple[str, ...] | None = None
    counts: Mapping[str, int] | None = None
    share_alike: bool | None = None
    name: str = "remove"
    traits: Traits = Traits(Decides.BEFORE_TRAINING, frozenset({"width"}), repeats=True, times=True)

    def needed(self, recipe: Recipe) -> bool:
        return True

    def check(self, artifact: Artifact, context: Context) -> None:
        self._choice.check(artifact, context)

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        if self._met(artifact, context):
            return artifact.noting(f"The model meets the target {context.recipe.target} already: no channel was removed.")
        edits, notes = self.decide(artifact, context)
        smaller = apply(Plan(edits, context.recipe.method, context.recipe.align or 1), artifact).noting(*notes)
        return refit.refitted(smaller, context)

    def decide(
        self, artifact: Artifact, context: Context, losses: Losses | None = None
    ) -> tuple[tuple[Keep, ...], tuple[str, ...]]:
        """The edits, and what should be said about them; see `selection.choice`."""
        return self._choice.decide(artifact, context, losses)

    def estimated(self, artifact: Artifact, context: Context) -> float | None:
        """See `stage.Estimates`."""
        return self._choice.estimated(artifact, context)

    def measured(self, artifact: Artifact, context: Context) -> Sequence[Group]:
        """See `stage.Measures`."""
        return () if self._met(artifact, context) else self._choice.measured(artifact, context)

    @property
    def _choice(self) -> Choice:
        return Choice(self.selector, self.groups, self.counts, self.share_alike)

    def _met(self, artifact: Artifact, context: Context) -> bool:
        """Whether another stage has been here: a model that was never changed is not as small as any target."""
        sized = self.counts is None and context.recipe.tolerance is None and context.time is None
        target = context.recipe.target or DEFAULT_TARGET
        return sized and artifact is not context.dense and budget.met(target, artifact, context.dense)
