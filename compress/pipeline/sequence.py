"""From a recipe to the stages of its run: the method's steps, less what the recipe does not need, in order and in iterations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module

from compress.errors import BadInput
from compress.method_table import Named, Step, method
from compress.recipe import Recipe
from compress.stage import Stage
from compress.stages.analyze import Analyze
from compress.stages.iteration import Iteration
from compress.stages.merge import Merge
from compress.stages.order import Order
from compress.stages.replay import Replay


def made(step: Step | Named) -> Stage:
    """The stage of a step; one that is a stage already stays as it is.

    Raises:
        TypeError: it is no stage; names what it lacks.
    """
    found: object = step
    if isinstance(step, Step):
        # Imported when it is needed, so that listing methods loads no torch.
        found = getattr(import_module(f"compress.stages.{step.file}"), step.file.title().replace("_", ""))(**step.settings)
    if not isinstance(found, Stage):
        lacking = [name for name in ("name", "traits", "needed", "check", "__call__") if not hasattr(found, name)]
        raise TypeError(f"The stage {type(found).__name__} lacks {', '.join(lacking)}; compress/stage.py says what a stage is.")
    return found


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of the recipe's method that the recipe needs.

    Raises:
        BadInput: no such method.
    """
    # Replay first, for every method: a plan that is given comes before what the method decides.
    every: tuple[Stage, ...] = (Replay(), *map(made, method(recipe.method).steps))
    stages = [stage for stage in every if stage.needed(recipe)]
    if recipe.order != "width-depth":
        stages = _exchanged(stages) if recipe.order == "depth-width" else _tried(stages)
    if recipe.iterations == 1:
        return _looking_ahead(stages)
    repeated = [stage for stage in stages if stage.traits.repeats]
    if not any(stage.traits.removes for stage in repeated):
        raise BadInput(
            f"--iterations {recipe.iterations} repeats removals, and {recipe.method} has none to repeat. Leave --iterations out."
        )
    first, last = stages.index(repeated[0]), stages.index(repeated[-1]) + 1
    iterations = (Iteration(stage, n, recipe.iterations) for n in range(1, recipe.iterations + 1) for stage in repeated)
    return _looking_ahead([*stages[:first], *iterations, *stages[last:]])


def _looking_ahead(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """Analysis told of the stage behind it: both go over the same images of the same model."""
    behind = [*stages[1:], None]
    return tuple(replace(s, ahead=b) if isinstance(s, Analyze) else s for s, b in zip(stages, behind, strict=True))


def _ordered(stages: list[Stage]) -> list[int]:
    """Places of the stages that `--order` speaks of: each removes either width or depth, in every iteration."""
    return [i for i, stage in enumerate(stages) if len(stage.traits.removes) == 1 and stage.traits.repeats]


def _exchanged(stages: list[Stage]) -> list[Stage]:
    """Depth before width: these two change places, the others stay where they are."""
    places = _ordered(stages)
    both = sorted((stages[i] for i in places), key=lambda stage: "width" in stage.traits.removes)
    # One by one into the same places, so that stages in between stay where they are.
    return [both.pop(0) if i in places else stage for i, stage in enumerate(stages)]


def _tried(stages: list[Stage]) -> list[Stage]:
    """Both orders as one stage, where there are two to put in order."""
    there = [stages[i] for i in _ordered(stages)]
    width, depth = (next((s for s in there if kind in s.traits.removes), None) for kind in ("width", "depth"))
    if width is None or depth is None:
        return stages
    both: Stage = Order(width, depth, Merge())
    return [both if stage is width else stage for stage in stages if stage is not depth]
