"""`compress plan` and `compress run --dry-run`: what would be done, and what it would save, before any training."""

from __future__ import annotations

from dataclasses import dataclass

from compress import artifact as artifacts
from compress.measure.cost import Cost, cost
from compress.methods import stages_of
from compress.opening import prepare
from compress.plan import Plan
from compress.recipe import Recipe
from compress.stage import Progress, silent
from compress.stages.remove import Remove


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


def decide(recipe: Recipe, progress: Progress = silent) -> Decision:
    """Make the plan of a recipe. Nothing is written and no weight is changed.

    Raises:
        BadInput: a setting or a file that cannot be used.
        Infeasible: the target is out of reach; says what is reachable.
        UnsupportedModel: nothing in the model can be removed.
    """
    stages = stages_of(recipe)
    context, _ = prepare(recipe, progress)
    dense = planned = context.dense
    for stage in stages:
        stage.check(dense, context)
    for stage in stages:
        if isinstance(stage, Remove):
            edits, notes = stage.decide(planned, context)
            planned = artifacts.apply(Plan(edits), planned).noting(*notes)
    plan = Plan(planned.plan.edits, recipe.method, recipe.align or 1)
    if recipe.align is None:
        planned = planned.noting("Channel counts are not rounded here; a run rounds them where that is faster. --align decides.")
    return Decision(plan, size(cost(dense.module, dense.inputs)), size(cost(planned.module, planned.inputs)), planned.notes)


def size(found: Cost) -> Size:
    """The totals of a cost."""
    return Size(found.params, found.macs, found.weight_bytes, found.peak_activation_bytes)
