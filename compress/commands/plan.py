"""`compress plan` and `compress run --dry-run`: what would be done, and what it would save, before any training."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compress import artifact as artifacts
from compress.edits import Plan
from compress.errors import BadInput
from compress.measure.cost import Cost, cost
from compress.pipeline.latency_cache import Stopwatch
from compress.pipeline.methods import stages_of
from compress.pipeline.prepare import prepare
from compress.recipe import Recipe
from compress.stage import Progress, silent
from compress.stages.easier import Easier
from compress.stages.merge import Merge
from compress.stages.nepenthe import Nepenthe
from compress.stages.order import Order
from compress.stages.remove import Remove
from compress.stages.search import Search
from compress.stages.shorten import Shorten


@dataclass(frozen=True)
class Size:
    """Cost of a model, without its layers."""

    params: int
    macs: int
    weight_bytes: int
    peak_activation_bytes: int


@dataclass(frozen=True)
class Decision:
    """A plan, and the cost of the model before and after it."""

    plan: Plan
    dense: Size
    planned: Size
    notes: tuple[str, ...]


def decide(recipe: Recipe, progress: Progress = silent, *, quick: bool = True) -> Decision:
    """Make the plan of a recipe. Nothing is written, the model file is not touched.

    Args:
        recipe: every setting.
        progress: told what is being done.
        quick: which channels go, and no more. Otherwise what a run without any training does: weights refitted, and layers
            that are measured to be faster as one merged.

    Raises:
        BadInput: a setting or a file that cannot be used, or a method that decides while it trains.
        Infeasible: the target is out of reach; says what is reachable.
        UnsupportedModel: nothing in the model can be removed.
    """
    stages = stages_of(recipe.model_copy(update={"turns": 1, "order": "width-depth" if quick else recipe.order}))
    if training := next((stage.name for stage in stages if isinstance(stage, Easier | Nepenthe)), None):
        raise BadInput(
            f"The method {recipe.method} decides while it trains ({training}), so there is no plan before the run. "
            "Run it with 'compress run'; its plan.json is then what 'compress apply' replays."
        )
    context, _ = prepare(recipe, progress)
    context = replace(context, race=Stopwatch(recipe, context.device).race)
    dense = planned = context.dense
    for stage in stages:
        stage.check(dense, context)
    for stage in stages:
        if quick and isinstance(stage, Remove | Search):
            edits, notes = stage.decide(planned, context)
            planned = artifacts.apply(Plan(edits), planned).noting(*notes)
        elif not quick and isinstance(stage, Remove | Search | Shorten | Order | Merge):
            planned = stage(planned, context)
    plan = Plan(planned.plan.edits, recipe.method, recipe.align or 1)
    if recipe.turns > 1:
        planned = planned.noting(
            f"Decided in one turn: of {recipe.turns} each but the first decides on what training made of the model."
        )
    if recipe.align is None:
        planned = planned.noting("Channel counts are not rounded here; a run rounds them where that is faster. --align decides.")
    return Decision(plan, size(cost(dense.module, dense.inputs)), size(cost(planned.module, planned.inputs)), planned.notes)


def size(found: Cost) -> Size:
    """The totals of a cost."""
    return Size(found.params, found.macs, found.weight_bytes, found.peak_activation_bytes)
