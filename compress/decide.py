"""`compress plan` and `compress run --dry-run`: what would be done, and what it would save, before any training."""

from __future__ import annotations

from dataclasses import dataclass

from compress import artifact as artifacts
from compress.measure.cost import Cost, cost
from compress.pipeline import prepare, silent, stages_of
from compress.plan import Plan
from compress.recipe import Recipe
from compress.stage import Progress

TRAINING = ("reconstruct", "finetune")
"""Stages that only change weights: a plan does not need them."""


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
    """Make the plan of a recipe. Nothing is written; the weights that the plan is judged by are thrown away.

    Raises:
        BadInput: a setting or a file that cannot be used.
        Infeasible: the target is out of reach; says what is reachable.
        UnsupportedModel: nothing in the model can be removed.
    """
    stages = [stage for stage in stages_of(recipe) if stage.name not in TRAINING]
    context, _ = prepare(recipe, progress)
    for stage in stages:
        stage.check(context.dense, context)
    artifact = context.dense
    for stage in stages:
        artifact = stage(artifact, context)
    plan = Plan(artifact.plan.edits, recipe.method, recipe.align)
    planned = artifacts.apply(plan, context.dense)
    return Decision(
        plan, size(cost(context.dense.module, context.dense.inputs)), size(cost(planned.module, planned.inputs)), artifact.notes
    )


def size(found: Cost) -> Size:
    """The totals of a cost."""
    return Size(found.params, found.macs, found.weight_bytes, found.peak_activation_bytes)
