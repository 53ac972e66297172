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
from compress.stages.reconstruct import Reconstruct
from compress.stages.relocate import Relocate
from compress.stages.remove import Remove
from compress.stages.shorten import Shorten

METHODS: dict[str, tuple[Stage, ...]] = {
    "entropic": (Analyse(), Remove("entropic"), Shorten(), Reconstruct(), Finetune(), Merge()),
    "obs": (Analyse(), Remove("obs"), Reconstruct(), Finetune()),
    "taylor": (Analyse(), Remove("taylor"), Reconstruct(), Finetune()),
    "magnitude": (Analyse(), Remove("magnitude"), Reconstruct(), Finetune()),
    "random": (Analyse(), Remove("random"), Reconstruct(), Finetune()),
    "easier": (Easier(), Relocate(), Finetune(), Merge()),
    "nepenthe": (Nepenthe(), Relocate(), Finetune(), Merge()),
}


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of the recipe's method that the recipe needs.

    Raises:
        BadInput: no such method.
    """
    if recipe.method not in METHODS:
        raise BadInput(f"The method is '{recipe.method}'; known are {', '.join(METHODS)}. See 'compress methods'.")
    stages = [stage for stage in METHODS[recipe.method] if stage.needed(recipe)]
    if recipe.order == "depth-width":  # a stable sort: only these two change places
        ranks = {Shorten: 0, Remove: 1}
        places = [i for i, stage in enumerate(stages) if type(stage) in ranks]
        for place, stage in zip(places, sorted((stages[i] for i in places), key=lambda s: ranks[type(s)]), strict=True):
            stages[place] = stage
    return tuple(stages)
