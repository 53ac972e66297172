"""Channel counts as they come, or rounded to what the kernels of runtimes like: whichever is timed as the better."""

from __future__ import annotations

from dataclasses import replace

from compress.artifact import Artifact
from compress.edits import Keep
from compress.errors import Infeasible
from compress.stage import Context, Stage

_BLOCK = 8  # channels; the least block of the kernels in ONNX Runtime and oneDNN


def with_widths_that_pay(stage: Stage, before: Artifact, context: Context, align: int | None) -> Artifact:
    """The stage's result with channel counts as they come, or rounded: what was asked for unless it is measurably slower, or,
    where nothing was asked for, rounded to 8 if that is measurably faster. Runtimes' kernels work on blocks of channels.
    """

    def carried_out(multiple: int) -> Artifact:
        return stage(before, replace(context, recipe=context.recipe.model_copy(update={"align": multiple})))

    if stage.traits.once:
        return carried_out(align or 1)
    plain = carried_out(1)
    # Nothing removed, or no rounding wanted: nothing to compare.
    if align == 1 or not any(isinstance(edit, Keep) for edit in plain.plan.edits[len(before.plan.edits) :]):
        return plain
    try:
        rounded = carried_out(align or _BLOCK)
    # A target that rounded counts cannot meet is no error unless rounding was asked for.
    except Infeasible:
        if align is not None:
            raise
        return plain
    assert context.race is not None, "a run can time"
    timing = context.race(rounded, plain)
    said = f"{timing.ratio:.2f}x as fast as unrounded ones (95 % interval {timing.ci95[0]:.2f} to {timing.ci95[1]:.2f})"
    # Asked for: kept unless measurably slower. Not asked for: only if measurably faster.
    if timing.faster or (align is not None and not timing.slower):
        return rounded.noting(f"Channel counts are rounded to multiples of {align or _BLOCK}: {said}.")
    return plain.noting(f"Channel counts are not rounded: in multiples of {align or _BLOCK} they are {said}.")
