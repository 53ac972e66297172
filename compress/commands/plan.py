"""`compress plan` and `compress run --dry-run`: what would be done, and what it would save, before any training."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

from compress.edits import Plan
from compress.errors import BadInput, CompressWarning
from compress.measure.cost import Cost
from compress.pipeline import contract, doubts, expected, measured_target
from compress.pipeline.given import NOTHING, Given
from compress.pipeline.latency_cache import LatencyCache
from compress.pipeline.prepare import prepare
from compress.pipeline.rounding import advised, with_widths_that_pay
from compress.pipeline.sequence import stages_of
from compress.progress import Progress, silent
from compress.recipe import Recipe
from compress.report import notebook
from compress.stage import Decides, Stage


@dataclass(frozen=True)
class Size:
    """Cost of a model, without its layers."""

    params: int
    macs: int
    weight_bytes: int
    peak_activation_bytes: int


@dataclass(frozen=True)
class Decision:
    """A plan, and the cost of the model before and after it.

    Attributes:
        seconds: that the run will take, roughly, timing and exports aside; None where that was not asked for, or depends on what
            the run finds.
    """

    plan: Plan
    dense: Size
    planned: Size
    notes: tuple[str, ...]
    seconds: float | None = None

    def _repr_html_(self) -> str:
        """Both costs as a table, for a notebook."""
        pairs = zip(dataclasses.asdict(self.dense).items(), dataclasses.asdict(self.planned).values(), strict=True)
        rows = [(name.replace("_", " "), f"{before:,}", f"{after:,}") for (name, before), after in pairs]
        return notebook.table(("", "dense", "planned"), rows)


def decide(recipe: Recipe, progress: Progress = silent, *, quick: bool = True, given: Given = NOTHING) -> Decision:
    """Make the plan of a recipe. Nothing is written, the model file is not touched.

    Args:
        recipe: every setting.
        progress: told what is being done.
        quick: which channels go, rounded where that is faster, and no more: no weight is fitted, and what else only a race can
            decide is left out where channels go as well. Otherwise what a run without any training does: weights refitted, and
            layers that are measured to be faster as one merged.
        given: what stands in memory and not in the recipe.

    Raises:
        BadInput: a setting or a file that cannot be used, or a method that decides while it trains.
        Infeasible: the target is out of reach; says what is reachable.
        UnsupportedModel: nothing in the model can be removed.
    """
    stages = _stages(recipe, quick)
    _refuse_what_cannot_be_planned(recipe.method, stages)
    width_alone = quick and any("width" in stage.traits.removes for stage in _deciding(stages))
    context, metric = prepare(recipe, progress, given, refusing=True)
    context = replace(context, race=LatencyCache(recipe, context.device).race, fitting=not width_alone)
    looked = measured_target.wanted(recipe) and not (quick and measured_target.timed(recipe))
    widest = replace(context, recipe=measured_target.widest(recipe)) if looked else context
    for stage in stages:
        stage.check(context.dense, widest)
    if (odd := doubts.guessing(context, metric)) is not None:
        warnings.warn(odd, CompressWarning, stacklevel=2)
    if looked:
        context, note = measured_target.found(recipe, stages, context, metric)
        recipe = context.recipe
        settled = recipe.model_copy(update={"align": recipe.align or 1})
        context = replace(context, recipe=settled, dense=context.dense.noting(note))
        stages = _stages(recipe, quick)
    deciding = _deciding(stages)
    chosen = [stage for stage in deciding if not (width_alone and stage.traits.races)]
    dense = planned = context.dense
    for stage in chosen:
        # As a run rounds them; what a dry run would have to time on another machine it leaves out.
        align = (recipe.align or 1) if quick and recipe.on else recipe.align
        planned = with_widths_that_pay(stage, planned, context, align)
    plan = Plan(planned.plan.edits, recipe.method, recipe.align or 1)
    planned = advised(planned).noting(*_left_open(recipe, [stage.name for stage in deciding if stage not in chosen]))
    sizes = [size(one.cost) for one in (dense, planned)]
    seconds = expected.all_of(stages_of(recipe), context) if quick and not contract.wanted(recipe) else None
    return Decision(plan, sizes[0], sizes[1], planned.notes, seconds)


def _stages(recipe: Recipe, quick: bool) -> tuple[Stage, ...]:
    """Those of one iteration; in a quick plan depth, which it leaves out, is in nobody's way."""
    return stages_of(recipe.model_copy(update={"iterations": 1, "order": "width-depth" if quick else recipe.order}))


def _deciding(stages: Sequence[Stage]) -> list[Stage]:
    return [stage for stage in stages if stage.traits.decides is Decides.BEFORE_TRAINING]


def _refuse_what_cannot_be_planned(method: str, stages: Sequence[Stage]) -> None:
    """A plan that would be empty only because nobody asked the stage is no plan."""
    for stage in stages:
        if stage.traits.decides is Decides.IN_TRAINING:
            raise BadInput(
                f"The method {method} decides while it trains ({stage.name}): {stage.traits.decides.value}. "
                "Run it with 'compress run'; its plan.json is then what 'compress apply' replays."
            )
    if all(stage.traits.decides is Decides.NOTHING for stage in stages):
        raise BadInput(f"The method {method} edits nothing with these settings, so there is nothing to plan.")


def _left_open(recipe: Recipe, raced: Sequence[str]) -> list[str]:
    """What the run will decide besides."""
    said: list[str] = []
    if contract.wanted(recipe):
        said.append("Without a target a run looks for the smallest model that keeps --max-drop; this plan is for macs=0.5.")
    if raced:
        said.append(f"Not in this plan: {', '.join(raced)}, which the run decides by timing; 'compress plan' does so, too.")
    if recipe.iterations > 1:
        said.append(
            f"Decided in one iteration: of {recipe.iterations} each but the first decides on what training made of the model."
        )
    return said


def size(found: Cost) -> Size:
    """The totals of a cost."""
    return Size(found.params, found.macs, found.weight_bytes, found.peak_activation_bytes)
