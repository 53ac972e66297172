"""One of several turns: a stage with its part of the way to the target, and of the training.

    target of turn t of n     dense^(1 - t/n) target^(t/n)        the same factor in each turn
    epochs of each turn       epochs / n

`--tolerance` and `--depth` are what each turn may cost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from compress.artifact import Artifact
from compress.measure.cost import cost
from compress.recipe import Recipe, parse_target
from compress.stage import Context, Stage


@dataclass(frozen=True)
class InTurn:
    """A stage in one of several turns. Rows of later turns bear their number."""

    stage: Stage
    number: int
    turns: int

    @property
    def name(self) -> str:
        return self.stage.name if self.number == 1 else f"{self.stage.name} {self.number}"

    def needed(self, recipe: Recipe) -> bool:
        return self.stage.needed(recipe)

    def check(self, artifact: Artifact, context: Context) -> None:
        """Refuse what the stage refuses, of the whole way to the target and not only of its part."""
        self.stage.check(artifact, context)

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        recipe = context.recipe
        part: dict[str, object] = {"epochs": recipe.epochs / self.turns}
        if recipe.target is not None:
            part["target"] = self._target(recipe.target, context.dense)
        return self.stage(artifact, replace(context, recipe=recipe.model_copy(update=part)))

    def _target(self, target: str, dense: Artifact) -> str:
        """The target of this turn, of the dense model as that of the run is."""
        unit, amount = parse_target(target)
        way = self.number / self.turns
        if unit == "size":
            return f"size={cost(dense.module, dense.inputs).weight_bytes ** (1 - way) * amount**way:.0f}"
        return f"{unit}={amount**way:.6f}"
