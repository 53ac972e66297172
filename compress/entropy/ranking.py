"""Which single weights stay, by a number for each, and in what steps one gets there.

remaining    left_n = (1 - p)^n           a share p of the weights that are left goes at each level
original     left_n = 1 - n p             a share p of all the weights that there were
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Masks = dict[str, Tensor]
"""By path of the layer, of its weight's shape: False where the weight is held at zero."""


def levels(target: float, share: float, of: Literal["remaining", "original"]) -> list[float]:
    """Shares of the weights that are left, level by level, from 1 down to the target.

    Args:
        target: share that stays in the end, in (0, 1).
        share: what one level takes, in (0, 1).
        of: what that is a share of.
    """
    found = [1.0]
    # Each level takes its share of what the definition says: of what is left, or of all.
    while found[-1] > target:
        following = found[-1] * (1 - share) if of == "remaining" else found[-1] - share
        # A last step of next to nothing would be a training for its own sake.
        found.append(target if following < target * (1 + share / 2) else following)
    return found


def stay(scores: Mapping[str, Tensor], masks: Mapping[str, Tensor], left: float, *, together: bool) -> Masks:
    """Masks in which the highest scores stay; what is masked already stays masked, and every layer keeps one weight at least.

    Args:
        scores: by path, of the weights' shapes.
        masks: of the level before.
        left: share of all weights that stays, those that went before counted.
        together: rank the weights of all layers together; otherwise each layer keeps this share of its own.
    """
    # -inf, so that a masked weight never comes back however high its score.
    open_ = {path: torch.where(masks[path], score.double(), -torch.inf) for path, score in scores.items()}
    if not together:
        return {path: _highest(score, max(1, round(left * score.numel()))) & masks[path] for path, score in open_.items()}
    for score in open_.values():
        # The best weight of each layer may not go, or nothing would flow through the layer.
        score.view(-1)[score.argmax()] = torch.inf
    flat = torch.cat([score.flatten() for score in open_.values()])
    chosen = _highest(flat, max(len(open_), round(left * len(flat)))).split([score.numel() for score in open_.values()])
    # topk may have to take masked ones (-inf) where few are left.
    return {path: part.view_as(masks[path]) & masks[path] for path, part in zip(open_, chosen, strict=True)}


def left(masks: Mapping[str, Tensor]) -> float:
    """Share of the weights that are not held at zero."""
    return sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


def _highest(score: Tensor, count: int) -> Tensor:
    """True at the `count` highest entries."""
    mask = torch.zeros(score.numel(), dtype=torch.bool)
    mask[score.flatten().topk(min(count, score.numel())).indices] = True
    return mask.view(score.shape)
