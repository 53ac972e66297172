"""What the metrics add up over batches, and how a total becomes a value (see `quality`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from compress.errors import BadInput
from compress.user.wording import many

IGNORE = 255  # class number of mask pixels that count for nothing
LARGEST_PSNR = 100.0  # decibels: the mean over images stays finite where one is reproduced exactly

Sums = Callable[[Tensor, Tensor], Tensor]
"""(output, target) -> a vector of numbers to be added over batches."""


def ratio(sums: Tensor) -> float:
    """The first of two sums, as a share of the second."""
    return float(sums[0] / sums[1].clamp_min(1))  # no sample counted: 0 of 1


def hits(count: int, output: Tensor, target: Tensor) -> Tensor:
    """(n, ...): whether the target is among the so many largest outputs (n, classes, ...).

    Raises:
        BadInput: labels of another shape.
    """
    if output.ndim < 2 or target.shape != (len(output), *output.shape[2:]):
        raise BadInput(f"Outputs of shape {tuple(output.shape)} have no classes for labels of shape {tuple(target.shape)}.")
    # topk of at most as many classes as there are.
    return (output.topk(min(count, output.shape[1]), dim=1).indices == target.unsqueeze(1)).any(1)


def largest(count: int) -> Sums:
    """How many of `hits` there are, and of how many."""

    def sums(output: Tensor, target: Tensor) -> Tensor:
        hit = hits(count, output, target)
        counted = target != IGNORE if output.ndim > 3 else torch.ones_like(hit)  # of pixels; tokens have any number
        return torch.stack([(hit & counted).sum(), counted.sum()])

    return sums


def confusion(output: Tensor, target: Tensor) -> Tensor:
    """Pixels of each pair of true and predicted class."""
    classes = output.shape[1]
    if target.shape != (len(output), *output.shape[2:]):
        raise BadInput(f"Outputs of shape {tuple(output.shape)} do not fit masks of shape {tuple(target.shape)}.")
    counted = (target != IGNORE) & (target >= 0)
    if bool((target[counted] >= classes).any()):
        raise BadInput(f"The masks reach class {int(target[counted].max())}, the model has {many(classes, 'output')}.")
    # A pair (true, predicted) as one number, counted by one bincount.
    pairs = target[counted] * classes + output.argmax(1)[counted]
    return pairs.bincount(minlength=classes * classes)


def mean_iou(sums: Tensor) -> float:
    """Of `confusion`."""
    counts = sums.view(round(len(sums) ** 0.5), -1)
    both, either = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    # Classes that occur neither in masks nor in predictions say nothing, and are left out of the mean.
    return float((both / either)[either > 0].mean()) if bool((either > 0).any()) else 0.0


def same_shape(output: Tensor, target: Tensor) -> Tensor:
    """The target in the output's shape; (n,) and (n, 1) are the same thing.

    Raises:
        BadInput: another number of values, which arithmetic would broadcast silently.
    """
    if output.shape != target.shape and (output.numel() != target.numel() or len(output) != len(target)):
        shapes = f"{tuple(output.shape)}, the target {tuple(target.shape)}"
        raise BadInput(f"The model's output has the shape {shapes}; needed is the same.")
    return target.reshape(output.shape)


def absolute(output: Tensor, target: Tensor) -> Tensor:
    """Differences without their sign, and how many."""
    error = (output - same_shape(output, target)).abs()
    return torch.stack([error.sum(), torch.tensor(float(error.numel()), device=error.device)])


def surprise(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy in nats, and of how many tokens."""
    if target.shape != (len(output), *output.shape[2:]):
        raise BadInput(f"Outputs of shape {tuple(output.shape)} have no classes for tokens of shape {tuple(target.shape)}.")
    nats = functional.cross_entropy(output.float(), target, reduction="sum").double()
    return torch.stack([nats, torch.tensor(float(target.numel()), device=nats.device, dtype=torch.float64)])


def decibels(output: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratios of images, and how many."""
    squared = (output - same_shape(output, target)).square().flatten(1).mean(1)
    each = (-10 * squared.clamp_min(10 ** (-LARGEST_PSNR / 10)).log10()).double()
    return torch.stack([each.sum(), torch.tensor(float(len(each)), device=each.device, dtype=torch.float64)])
