"""A loss whose gradient's second moment is the Fisher matrix, and sums of outer products of gradients.

Labels are drawn from the model's own probabilities, so that no data labels are needed; models that do not classify take a unit
Gaussian direction in output space instead, G = J^T J.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.measure.labels import classes, drawn, surprise


def drawn_loss(result: Tensor, task: str, generator: torch.Generator) -> Tensor:
    """A loss whose gradient's second moment is the Fisher matrix: labels drawn from the model, or a Gaussian direction."""
    return loss_of(result, draw(result, task, generator), task)


def draw(result: Tensor, task: str, generator: torch.Generator) -> Tensor:
    """What the loss of a whole batch is about: labels, or a direction in output space."""
    labels = drawn(result, task, generator)
    return torch.randn(result.shape, generator=generator).to(result.device) if labels is None else labels


def loss_of(result: Tensor, about: Tensor, task: str) -> Tensor:
    """The loss of a batch, or of a part of one."""
    if classes(result, task):
        # Sum, so that each sample's gradient is its own, whatever the batch size.
        return surprise(result, about, task, "sum")
    return (result * about).sum()


def outer_products(g: Tensor, channel_dim: int) -> Tensor:
    """Sum of g g^T over samples and positions, (c, c), float64 on the CPU."""
    rows = g.movedim(channel_dim, -1).flatten(0, -2)
    return (rows.T @ rows).double().cpu()
