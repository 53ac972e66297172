"""The methods: a name and the stages that it runs in a row. A new one is a line here and, where needed, a file in `stages/`."""

from __future__ import annotations

from compress.stage import Stage
from compress.stages.analyse import Analyse
from compress.stages.finetune import Finetune
from compress.stages.reconstruct import Reconstruct
from compress.stages.remove import Remove

METHODS: dict[str, tuple[Stage, ...]] = {
    "entropic": (Analyse(), Remove("entropic"), Reconstruct(), Finetune()),
    "obs": (Analyse(), Remove("obs"), Reconstruct(), Finetune()),
    "taylor": (Analyse(), Remove("taylor"), Reconstruct(), Finetune()),
    "magnitude": (Analyse(), Remove("magnitude"), Reconstruct(), Finetune()),
    "random": (Analyse(), Remove("random"), Reconstruct(), Finetune()),
}
