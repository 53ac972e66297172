"""A training that all processes of a run carry out together, each on its samples of every batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from torch.fx import GraphModule

from compress.stage import Context
from compress.training.loop import Training, train
from compress.training.masks import Masks, masked, unmasked
from compress.training.setup import Observer


@dataclass(frozen=True)
class How:
    """What a stage asks of `train` beside the recipe, and how it is told.

    Attributes:
        name: of the stage.
        detail: in front of what the training tells.
        taught: by the dense model.
        masks: weights that are held at zero.
        observer: of the first process's training, where all processes have the same gradients.
        hold_norms: as for `train`.
    """

    name: str
    detail: str = ""
    taught: bool = False
    masks: Masks | None = None
    observer: Observer | None = None
    hold_norms: bool = False


def train_together(module: GraphModule, context: Context, how: How) -> Training:
    """`train`, without its masks in the result.

    Raises:
        BadInput: as `train`.
        ProcessLost: another process of the run ended.
    """
    return context.together(_train, module, how)


def _train(module: GraphModule, how: How, context: Context) -> Training:
    recipe = context.recipe
    if how.masks or how.observer:  # both look at whole weights
        recipe = recipe.model_copy(update={"fsdp": False})
    # Masked here: a layer with a mask cannot be sent to another process.
    found = train(
        masked(module, how.masks) if how.masks else module,
        context.data,
        recipe,
        context.device,
        teacher=context.dense.module if how.taught else None,
        progress=lambda _, share, text: context.progress(how.name, share, f"{how.detail}, {text}" if how.detail else text),
        observer=how.observer,
        hold_norms=how.hold_norms,
        ranks=context.ranks,
    )
    return replace(found, module=cast(GraphModule, unmasked(found.module, module).cpu())) if how.masks else found
