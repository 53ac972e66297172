"""Do two trainings of one net find the same weights important? Learned sensitivity of three trainings, layer by layer.

    A, B   the same initial weights, another order and augmentation of the images        C   other initial weights
    d = |S_A - S_B| or |S_A - S_C| per weight, s = standard deviation of S_A over the layer

    learned    share of weights with 0 < d <= s / 10          absolute    share with d > s

Source: as `saliency`; its Table 1 has these two columns without the thresholds: they are our reading.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor
from torch.fx import GraphModule

from compress.errors import BadInput
from compress.stage import Context
from compress.training.initial_weights import beginning
from compress.training.reinitialize import reinitialized
from compress.training.saliency import learned
from compress.training.together import How

SLIGHT, LARGE = 0.1, 1.0
"""Of the standard deviation: up to the one a difference is slight, beyond the other it is large."""


@dataclass(frozen=True)
class Agreement:
    """One layer; shares of its weights.

    Attributes:
        weights: how many.
        same_learned, same_absolute: slight and large differences between trainings from the same initial weights.
        other_learned, other_absolute: between trainings from different ones.
    """

    layer: str
    weights: int
    same_learned: float
    same_absolute: float
    other_learned: float
    other_absolute: float


def agreement(context: Context) -> list[Agreement]:
    """Three trainings as the recipe says, a row per layer.

    Raises:
        BadInput: no labels, or no epochs.
    """
    recipe = context.recipe
    if not context.data.spec.labeled or recipe.epochs == 0:
        raise BadInput("The two-run diagnostic trains the net from the beginning: give labeled data, and --epochs above 0.")
    start = beginning(context.dense, context).module
    other, _ = reinitialized(start, recipe.seed + 1)
    runs = [
        learned(cast(GraphModule, module), _run_of(context, number), How("trainings", f"{number + 1} of 3"))
        for number, module in enumerate((start, start, other))
    ]
    return [
        Agreement(path, score.numel(), *_shares(score, runs[1][path]), *_shares(score, runs[2][path]))
        for path, score in runs[0].items()
    ]


def _shares(one: Tensor, other: Tensor) -> tuple[float, float]:
    apart, scale = (one - other).abs(), one.std(correction=0)
    slight, large = (apart > 0) & (apart <= SLIGHT * scale), apart > LARGE * scale
    return float(slight.double().mean()), float(large.double().mean())


def _run_of(context: Context, number: int) -> Context:
    """The same with another order of the images and other augmentation, a third of the way."""
    recipe = context.recipe.model_copy(update={"seed": context.recipe.seed + number})
    return replace(context, recipe=recipe, progress=lambda what, share, text: context.progress(what, (number + share) / 3, text))
