"""Channel counts as they come, or rounded to what the kernels of runtimes like: whichever is timed as the better.

Rounded counts may miss a target from below, and a smaller model is faster in any case. So where rounding was not asked for it has
to be faster by more than it is smaller. And it may not cost more quality than that time is worth: of unrounded counts that are as
quick, with as many fewer MACs, the loss that is estimated has to be no less.
"""

from __future__ import annotations

from dataclasses import replace

from compress.artifact import Artifact
from compress.edits import Factor, Keep, Merge
from compress.errors import Infeasible
from compress.measure.asked import parse_target
from compress.measure.latency import Timing
from compress.recipe import DEFAULT_TARGET
from compress.selection.choice import ROUNDED
from compress.stage import Context, Decides, Estimates, Findings, Stage

BLOCK = 8  # channels; the least block of the kernels in ONNX Runtime and oneDNN


def with_widths_that_pay(stage: Stage, before: Artifact, context: Context, align: int | None) -> Artifact:
    """The stage's result with channel counts as they come, or rounded: what was asked for unless it is measurably slower, or,
    where nothing was asked for, rounded to 8 if that is measurably faster. Runtimes' kernels work on blocks of channels.
    """
    # What it looks at is the same for every multiple.
    context = replace(context, findings=context.findings or Findings())
    # A race needs no fitted weights, but a stage that judges what it has fitted does.
    fits = stage.traits.races or stage.traits.decides is not Decides.BEFORE_TRAINING

    def carried_out(multiple: int, fitting: bool) -> Artifact:
        recipe = context.recipe.model_copy(update={"align": multiple})
        # Nor does it need to know which channels stay.
        which = fitting and context.which
        return stage(before, replace(context, recipe=recipe, fitting=fitting and context.fitting, which=which))

    def finished(multiple: int, found: Artifact) -> Artifact:
        return found if fits else carried_out(multiple, True)

    # Of a budget of milliseconds the multiple was chosen with it.
    if stage.traits.once or align == 1 or context.time is not None:
        return carried_out(align or 1, True)
    plain = carried_out(1, fits)
    # Nothing removed: nothing to compare.
    if not any(isinstance(edit, Keep) for edit in plain.plan.edits[len(before.plan.edits) :]):
        return finished(1, plain)
    multiple = align or BLOCK
    try:
        rounded = carried_out(multiple, fits)
    # A target that rounded counts cannot meet is no error unless rounding was asked for.
    except Infeasible:
        if align is not None:
            raise
        return finished(1, plain)
    assert context.race is not None, "a run can time"
    timing = context.race(rounded, plain)
    # Asked for: kept unless measurably slower. Not asked for: only if it pays.
    if pays(timing, rounded, plain) if align is None else not timing.slower:
        losses = _at_equal_time(stage, before, context, multiple, timing.ratio) if align is None else None
        weighed = f"{losses[0]:.3g} by rounded ones, {losses[1]:.3g} by unrounded ones that are as quick" if losses else ""
        if losses and losses[0] > losses[1]:
            return finished(1, plain).noting(
                f"Channel counts are not rounded: in multiples of {multiple} {timing.told}, but more is lost ({weighed})."
            )
        return finished(multiple, rounded).noting(
            f"Channel counts are rounded to multiples of {multiple}: beside unrounded ones {timing.told}"
            f"{f' (estimated loss: {weighed})' if weighed else ''}."
        )
    return finished(1, plain).noting(
        f"Channel counts are not rounded: in multiples of {multiple}, {_smaller(rounded, plain):.2f} of the MACs of unrounded "
        f"ones, {timing.told}{': no more than for being smaller' if timing.faster else ''}."
    )


def _at_equal_time(stage: Stage, before: Artifact, context: Context, multiple: int, ratio: float) -> tuple[float, float] | None:
    """Estimated loss of rounded counts, and of unrounded ones that are `ratio` times as quick; None where none is estimated."""
    if not isinstance(stage, Estimates):
        return None
    unit, amount = parse_target(context.recipe.target or DEFAULT_TARGET)
    # Fewer MACs save less time than their share at best, so this is kind to unrounded counts.
    asked = {multiple: amount, 1: amount / ratio}
    found: list[float] = []
    for align, wanted in asked.items():
        recipe = context.recipe.model_copy(update={"align": align, "target": f"{unit}={wanted:.6f}"})
        try:
            loss = stage.estimated(before, replace(context, recipe=recipe))
        except Infeasible:
            return None
        if loss is None:
            return None
        found.append(loss)
    return found[0], found[1]


def advised(artifact: Artifact) -> Artifact:
    """With what would come closer to the target, where rounding alone missed it: merged layers end below it in any case."""
    missed = any(ROUNDED in note for note in artifact.notes)
    if not missed or any(isinstance(edit, Merge | Factor) for edit in artifact.plan.edits):
        return artifact
    return artifact.noting("Without rounding channel counts (--align 1) it would come closer to the target.")


def pays(timing: Timing, rounded: Artifact, plain: Artifact) -> bool:
    """Whether rounding is measurably faster by more than it makes the model smaller."""
    return timing.faster and timing.ci95[0] * min(_smaller(rounded, plain), 1.0) > 1


def _smaller(rounded: Artifact, plain: Artifact) -> float:
    one, other = (each.cost.macs for each in (rounded, plain))
    return one / other if other else 1.0
