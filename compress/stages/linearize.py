"""Depth by choice: activations are linearized where the layers around them are measurably faster as one, and quality allows it.

    candidates   segments measured faster as one layer                                   gain_k  milliseconds
    losses       distance from the model's outputs with the activations of one segment linearized, padding moved       loss_k
    choice       dynamic programming: the most time saved for a sum of losses below a limit
    limit        the largest at which the joint model keeps to --depth points of held-out quality: all of it, then half, ...

The activations of the chosen segments are linearized, padding moves, and the layers behind are refitted to the dense model.
Fine-tuning follows, and merging last of all, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from compress.artifact import Artifact, apply
from compress.edits import Edit, Plan, Pointwise, Relocate
from compress.edits import Linearize as Affine
from compress.entropy.spans import Span, choose
from compress.errors import BadInput
from compress.measure import quality
from compress.measure.points import drop
from compress.recipe import Recipe
from compress.refit import fit_activations, refit
from compress.selection import depth
from compress.selection.merge_candidates import HOPELESS, Candidate, candidates
from compress.selection.output_divergence import moved
from compress.stage import Context, Decides, Traits
from compress.user.wording import many

_HALVINGS = 8


@dataclass(frozen=True)
class Linearize:
    """The stage.

    Attributes:
        alone: no channels are removed beside it, so a model without activations, or a target, is refused.
    """

    alone: bool = False
    name: str = "linearize"
    traits: Traits = Traits(Decides.BEFORE_TRAINING, frozenset({"depth"}), repeats=True, races=True)

    def needed(self, recipe: Recipe) -> bool:
        return self.alone or allowed(recipe) > 0

    def check(self, artifact: Artifact, context: Context) -> None:
        """A model without activations, or without any that is worth an affine function, passes unchanged, unless this is all
        that is done.

        Raises:
            BadInput: there is a target, which a choice by speed does not have, or no quality that it may cost.
            UnsupportedModel: no activation can be linearized.
        """
        if not self.alone:
            return
        if context.recipe.target is not None:
            raise BadInput(
                f"The target is {context.recipe.target}, but the method {context.recipe.method} stops by --depth, points that "
                "linearizing may cost before fine-tuning. Give those, or take --method easier, with targets such as "
                "activations=0.5."
            )
        if not allowed(context.recipe):
            raise BadInput(
                f"The method {context.recipe.method} may cost no quality here (--depth is 0, as it is by default without "
                "fine-tuning), so nothing would be done. Give --depth POINTS, such as --depth 1, or --epochs above 0."
            )
        depth.free(artifact)

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        found = candidates(
            artifact, context.race, lambda one: bool(one.activations), _share(context, "time segments"), pointwise=True
        )
        if not found.candidates:
            if found.tried + found.hopeless == 0:
                return artifact
            return artifact.noting(
                f"Depth: of {found.tried} segments none is faster as one layer ({found.hopeless} more would take over "
                f"{HOPELESS:g} times the multiply-accumulates), so every activation stays: merging does not pay here."
            )
        wanted = tuple(dict.fromkeys(activation for one in found.candidates for activation in one.segment.activations))
        straight = {edit.layer: edit for edit in fit_activations.fitted(artifact, context, wanted)}
        return self._chosen(artifact, context, found.candidates, straight)

    def _chosen(self, artifact: Artifact, context: Context, found: Sequence[Candidate], straight: dict[str, Affine]) -> Artifact:
        edits = [_edits([one], straight) for one in found]
        losses = moved(artifact, edits, context, _share(context, "loss of segments"))
        spans = [Span(one.start, one.stop, one.gain, loss) for one, loss in zip(found, losses, strict=True)]
        start, points = depth.held_out(artifact, context), allowed(context.recipe)
        limit = sum(max(loss, 0.0) for loss in losses)
        for _ in range(_HALVINGS):
            chosen = [found[i] for i in choose(spans, limit)]
            if not chosen:
                break
            shorter = apply(Plan(_edits(chosen, straight)), artifact)
            if fit_activations.refits(context.recipe):
                shorter = refit.refitted(shorter, context)
            lost = drop(start, depth.held_out(shorter, context))
            if lost <= points:
                activations = sum(len(one.segment.activations) for one in chosen)
                where = many(len(chosen), "segment")
                refitted = ", with the layers refitted to make up for it," if fit_activations.refits(context.recipe) else ""
                return shorter.noting(
                    f"Depth: {activations} of {len(depth.free(artifact))} activations were linearized in {where}, "
                    f"which together{refitted} {_costs(lost)} of held-out {start.metric} before fine-tuning.",
                    *self._each(artifact, context, chosen, straight, start),
                )
            limit = min(limit, sum(max(spans[found.index(one)].loss, 0.0) for one in chosen)) / 2
        return artifact.noting(
            f"Depth: {len(found)} segments are faster as one layer, but none keeps to {points:g} point"
            f"{'' if points == 1 else 's'} of held-out {start.metric} (--depth): every activation stays."
        )

    def _each(
        self,
        artifact: Artifact,
        context: Context,
        chosen: Sequence[Candidate],
        straight: dict[str, Affine],
        start: quality.Quality,
    ) -> list[str]:
        """What each segment gains, and what it costs where it is the only one and nothing is refitted."""
        said: list[str] = []
        for number, one in enumerate(chosen):
            alone = depth.held_out(apply(Plan(_edits([one], straight)), artifact), context)
            gain = f"{one.gain:,.0f} multiply-accumulates" if one.timing is None else f"{one.gain:.3g} ms of {_before(one):.3g}"
            less = f", {', '.join(one.segment.pointwise)} with its kernel reduced to 1x1" if one.segment.pointwise else ""
            said.append(
                f"Depth: {one.segment.layers[0]} to {one.segment.layers[-1]} as one layer, {', '.join(one.segment.activations)} "
                f"linearized{less}: saves {gain}; alone, and with nothing refitted, it {_costs(drop(start, alone))}."
            )
            context.progress("cost of segments", (number + 1) / len(chosen), one.segment.layers[0])
        return said


def _before(one: Candidate) -> float:
    """Milliseconds that the segment takes as it is."""
    assert one.timing is not None
    return one.timing.p50_ms * one.timing.ratio


def allowed(recipe: Recipe) -> float:
    """Points that linearizing may cost before fine-tuning: as `--depth` says, by default 1 where fine-tuning follows, else
    none.
    """
    return recipe.depth if recipe.depth is not None else float(recipe.epochs > 0)


def _edits(chosen: Sequence[Candidate], straight: dict[str, Affine]) -> tuple[Edit, ...]:
    return (
        *(straight[activation] for one in chosen for activation in one.segment.activations),
        *(Pointwise(layer) for one in chosen for layer in one.segment.pointwise),
        *(Relocate(layers) for one in chosen for layers in one.segment.relocate),
    )


def _costs(lost: float) -> str:
    """`costs 0.69 points`, `gains 0.14 points`: a sign could be read both ways."""
    return f"{'gains' if lost < 0 else 'costs'} {abs(lost):.2f} points"


def _share(context: Context, what: str) -> Callable[[float], None]:
    return lambda share: context.progress(what, share, "")
