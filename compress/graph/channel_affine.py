"""The layer that stands for a linearized activation: an affine function of its own for each channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelAffine(nn.Module):
    """slope * x + offset, per channel; trainable.

    Args:
        channels: how many.
        axis: where they are, 1 (images) or -1 (tokens).
    """

    slope: nn.Parameter
    offset: nn.Parameter

    def __init__(self, channels: int, axis: int = 1):
        super().__init__()
        if axis not in (1, -1) or channels < 1:
            raise ValueError(f"its channels are on axis 1 or -1, at least one of them, not {channels} on {axis}")
        self.axis = axis
        self.slope = nn.Parameter(torch.empty(channels))
        self.offset = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    @property
    def channels(self) -> int:
        """How many channels it has now."""
        return self.slope.shape[0]

    def reset_parameters(self) -> None:
        """Back to the identity."""
        nn.init.ones_(self.slope)
        nn.init.zeros_(self.offset)

    def forward(self, x: Tensor) -> Tensor:
        # Built from x.ndim and not at construction: the channels are known there, the number of axes behind them is not.
        behind = [1] * (x.ndim - 2) if self.axis == 1 else []
        return x * self.slope.view(-1, *behind) + self.offset.view(-1, *behind)

    def extra_repr(self) -> str:
        return f"{self.channels}, axis={self.axis}"


def channel_affine(slope: Tensor, offset: Tensor, axis: int) -> ChannelAffine:
    """The layer of given numbers, (c,) each, in float32."""
    made = ChannelAffine(len(slope), axis)
    with torch.no_grad():
        made.slope.copy_(slope)
        made.offset.copy_(offset)
    return made
