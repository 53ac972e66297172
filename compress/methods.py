"""The methods: a name and the stages that it runs in a row. A new one is a line here and, where needed, a file in `stages/`."""

from __future__ import annotations

from compress.errors import BadInput
from compress.recipe import Recipe
from compress.stage import Stage
from compress.stages.analyse import Analyse
from compress.stages.easier import Easier
from compress.stages.finetune import Finetune
from compress.stages.merge import Merge
from compress.stages.nepenthe import Nepenthe
from compress.stages.order import Order
from compress.stages.reconstruct import Reconstruct
from compress.stages.relocate import Relocate
from compress.stages.remove import Remove
from compress.stages.shorten import Shorten
from compress.stages.turn import InTurn

METHODS: dict[str, tuple[Stage, ...]] = {
    "entropic": (Analyse(), Remove("entropic"), Shorten(), Reconstruct(), Finetune(), Merge()),
    "depth": (Analyse(), Shorten(alone=True), Reconstruct(), Finetune(), Merge()),
    "obs": (Analyse(), Remove("obs"), Reconstruct(), Finetune()),
    "taylor": (Analyse(), Remove("taylor"), Reconstruct(), Finetune()),
    "magnitude": (Analyse(), Remove("magnitude"), Reconstruct(), Finetune()),
    "random": (Analyse(), Remove("random"), Reconstruct(), Finetune()),
    "easier": (Easier(), Relocate(), Finetune(), Merge()),
    "nepenthe": (Nepenthe(), Relocate(), Finetune(), Merge()),
}

_IN_TURNS = (Remove, Shorten, Order, Reconstruct, Finetune)


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of the recipe's method that the recipe needs.

    Raises:
        BadInput: no such method.
    """
    if recipe.method not in METHODS:
        raise BadInput(f"The method is '{recipe.method}'; known are {', '.join(METHODS)}. See 'compress methods'.")
    stages = [stage for stage in METHODS[recipe.method] if stage.needed(recipe)]
    if recipe.order != "width-depth":
        stages = _exchanged(stages) if recipe.order == "depth-width" else _tried(stages)
    if recipe.turns == 1:
        return tuple(stages)
    repeated = [stage for stage in stages if isinstance(stage, _IN_TURNS)]
    if not any(isinstance(stage, Remove | Shorten | Order) for stage in repeated):
        raise BadInput(f"--turns {recipe.turns} repeats removals, and {recipe.method} has none to repeat. Leave --turns out.")
    first, last = stages.index(repeated[0]), stages.index(repeated[-1]) + 1
    turns = (InTurn(stage, n, recipe.turns) for n in range(1, recipe.turns + 1) for stage in repeated)
    return (*stages[:first], *turns, *stages[last:])


def _exchanged(stages: list[Stage]) -> list[Stage]:
    """Depth before width: these two change places, the others stay where they are."""
    places = [i for i, stage in enumerate(stages) if isinstance(stage, Remove | Shorten)]
    both = sorted((stages[i] for i in places), key=lambda stage: isinstance(stage, Remove))
    return [both.pop(0) if i in places else stage for i, stage in enumerate(stages)]


def _tried(stages: list[Stage]) -> list[Stage]:
    """Both orders as one stage, where there are two to put in order."""
    remove, shorten = (next((s for s in stages if isinstance(s, kind)), None) for kind in (Remove, Shorten))
    if remove is None or shorten is None:
        return stages
    both = Order(remove, shorten, Merge())
    return [both if stage is remove else stage for stage in stages if stage is not shorten]
