"""The weights that a training began with: of a checkpoint, or drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from torch.fx import GraphModule

from compress.artifact import Artifact
from compress.recipe import DRAWN
from compress.stage import Context
from compress.training.reinitialize import reinitialized


def beginning(artifact: Artifact, context: Context) -> Artifact:
    """The architecture of an artifact as it was before its training: `--initial` as a file, else drawn with the recipe's seed."""
    if context.recipe.initial not in (None, DRAWN):
        assert context.initial is not None, "a named checkpoint was opened with the model"
        return replace(artifact, module=context.initial.module)
    drawn, said = reinitialized(artifact.module, context.recipe.seed)
    return replace(artifact, module=cast(GraphModule, drawn)).noting(said)
