"""One of several iterations: a stage with its part of the way to the target, and of the training.

    target of iteration t of n     dense^(1 - t/n) target^(t/n)        the same factor in each iteration
    epochs of each iteration       epochs / n

`--tolerance` and `--depth` are what each iteration may cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from compress.artifact import Artifact
from compress.graph.channels.solve import Group
from compress.measure.asked import parse_target
from compress.recipe import Recipe
from compress.stage import Context, Measures, Stage, Traits


@dataclass(frozen=True)
class Iteration:
    """A stage in one of several iterations. Rows of later iterations bear their number."""

    stage: Stage
    number: int
    iterations: int

    @property
    def name(self) -> str:
        return self.stage.name if self.number == 1 else f"{self.stage.name} {self.number}"

    @property
    def traits(self) -> Traits:
        return self.stage.traits

    def needed(self, recipe: Recipe) -> bool:
        return self.stage.needed(recipe)

    def check(self, artifact: Artifact, context: Context) -> None:
        # the whole way to the target, and not only the part of this iteration
        self.stage.check(artifact, context)

    def measured(self, artifact: Artifact, context: Context) -> Sequence[Group]:
        """See `stage.Measures`."""
        return self.stage.measured(artifact, context) if isinstance(self.stage, Measures) else ()

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        recipe = context.recipe
        part: dict[str, object] = {"epochs": recipe.epochs / self.iterations}
        if recipe.target is not None:
            part["target"] = self._target(recipe.target, context.dense)
        return self.stage(artifact, replace(context, recipe=recipe.model_copy(update=part)))

    def _target(self, target: str, dense: Artifact) -> str:
        """The target of this iteration, of the dense model as that of the run is."""
        unit, amount = parse_target(target)
        way = self.number / self.iterations
        if unit == "size":
            return f"size={dense.cost.weight_bytes ** (1 - way) * amount**way:.0f}"
        return f"{unit}={amount**way:.6f}"
