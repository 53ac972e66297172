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
        if recipe.target is not None and self.stage.name.startswith("remove"):
            part["target"] = self._target(recipe.target, artifact, context.dense)
            if part["target"] is None:
                return artifact.noting(
                    f"The channels left by turn {self.number - 1} already meet the target of turn {self.number}."
                )
        return self.stage(artifact, replace(context, recipe=recipe.model_copy(update=part)))

    def _target(self, target: str, artifact: Artifact, dense: Artifact) -> str | None:
        """The target of this turn as the stage takes it, a share of the model that it gets; None where that is there already."""
        unit, amount = parse_target(target)
        way = self.number / self.turns
        first, now = (cost(a.module, a.inputs) for a in (dense, artifact))
        if unit == "size":
            size = first.weight_bytes ** (1 - way) * amount**way
            return None if size >= now.weight_bytes else f"size={size:.0f}"
        share = amount**way * (first.macs / now.macs if unit == "macs" else first.params / now.params)
        return None if share >= 1 else f"{unit}={share:.6f}"
