"""Merging: segments without an activation become one layer where that is measurably faster. The model computes what it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress.artifact import Artifact, apply
from compress.edits import Factor, Plan
from compress.edits import Merge as Edit
from compress.entropy.spans import Span, choose
from compress.graph.merge.low_rank import factored, rank_of
from compress.graph.merge.segments import Segment
from compress.recipe import Recipe
from compress.selection.merge_candidates import candidates
from compress.stage import Context, Decides, Race, Traits


@dataclass(frozen=True)
class Merge:
    """The stage. Each merge is measured faster than the layers that it replaces, and all of them together are."""

    name: str = "merge"
    traits: Traits = Traits(Decides.BEFORE_TRAINING, races=True)

    def needed(self, recipe: Recipe) -> bool:
        return True

    def check(self, artifact: Artifact, context: Context) -> None:
        """A model without anything to merge passes unchanged."""

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        found = candidates(artifact, context.race, ready, lambda share: context.progress("merge", share, ""))
        spans = [Span(one.start, one.stop, one.gain, 0.0) for one in found.candidates]
        # No losses: a merge is exact, so any set of disjoint segments may be taken.
        chosen = [found.candidates[i] for i in choose(spans, 0.0)]
        if not chosen:
            if found.tried + found.hopeless == 0:
                return artifact
            return artifact.noting(
                f"Of {found.tried + found.hopeless} segments that are linear none is faster as one layer: nothing was merged."
            )
        shallower = apply(Plan(tuple(Edit(one.segment.layers) for one in chosen)), artifact)
        before = sum(len(one.segment.layers) for one in chosen)
        said = f"{before} layers were merged into {len(chosen)}"
        if context.race is None:
            return shallower.noting(f"{said}; nothing was timed, the choice went by multiply-accumulates.")
        # All of them together, since single gains need not add up.
        timing = context.race(shallower, artifact)
        how = timing.told
        if timing.slower:
            return artifact.noting(f"{said}, but the whole model was then {how}: they were left as they are.")
        return _low_rank(shallower.noting(f"{said}: {how}."), [one.segment.layers[0] for one in chosen], context.race)


def _low_rank(artifact: Artifact, layers: Sequence[str], race: Race) -> Artifact:
    """Merged layers of low rank as two low-rank ones each, where that is faster still: an affine function of slope 0 leaves such
    behind.
    """
    pairs = {path: factored(artifact.module.get_submodule(path)) for path in layers}
    edits = tuple(Factor(path, rank_of(pair)) for path, pair in pairs.items() if pair is not None)
    if not edits:
        return artifact
    smaller = apply(Plan(edits), artifact)
    timing = race(smaller, artifact)
    how = timing.told
    said = f"Two low-rank layers compute the same as a merged one for {len(edits)} of {len(layers)}, whose rank is so low: {how}"
    return smaller.noting(f"{said}.") if timing.faster else artifact.noting(f"{said}, so they were left as they are.")


def ready(segment: Segment) -> bool:
    """Linear as it stands."""
    return not segment.activations and not segment.relocate
