"""The layer that stands for a norm over channels of which some have gone: in its statistics those count as zeros.

    y = norm([x, 0])' where the zeros fill the C channels that there were, and ' drops them again

So the layer computes for the channels that stay exactly what the norm did while the others were zero. To put zeros there for the
time of the norm is faster than any formula with k of C channels, since norms are single operations everywhere. RMSNorm needs no
zeros: with r = k / C its weight is divided by sqrt(r) and eps by r.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PartialNorm(nn.Module):
    """LayerNorm, RMSNorm or GroupNorm of one group over `channels` of once `of` channels; trainable.

    Args:
        channels: how many there are.
        of: how many there were.
        eps: added to the variance.
        axis: -1: statistics over the last axis (tokens); 1: over all axes but the first, channels on axis 1 (images).
        centered: whether the mean is taken away; RMSNorm does not.
        weight: whether there is a factor for each channel.
        bias: whether something is added to each channel.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(
        self,
        channels: int,
        of: int,
        eps: float = 1e-5,
        axis: int = -1,
        centered: bool = True,
        weight: bool = True,
        bias: bool = True,
    ):
        super().__init__()
        if axis not in (1, -1) or not 1 <= channels <= of:
            raise ValueError(f"its channels are on axis 1 or -1, at least one and at most {of} of them, not {channels} on {axis}")
        if not (centered or axis == -1):
            raise ValueError("a norm of images takes the mean away")
        self.channels, self.of, self.eps, self.axis, self.centered = channels, of, eps, axis, centered
        self.weight = nn.Parameter(torch.ones(channels)) if weight else None
        self.bias = nn.Parameter(torch.zeros(channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if not self.centered:
            share = self.channels / self.of
            weight = x.new_ones(self.channels) if self.weight is None else self.weight
            y = F.rms_norm(x, (self.channels,), weight * share**-0.5, self.eps / share)
            return y if self.bias is None else y + self.bias
        gap = (0, self.of - self.channels)
        weight, bias = (None if p is None else F.pad(p, gap) for p in (self.weight, self.bias))
        if self.axis == -1:
            return F.layer_norm(F.pad(x, gap), (self.of,), weight, bias, self.eps)[..., : self.channels]
        behind = (0, 0) * (x.ndim - 2)
        return F.group_norm(F.pad(x, behind + gap), 1, weight, bias, self.eps)[:, : self.channels]

    def extra_repr(self) -> str:
        return f"{self.channels} of {self.of}, eps={self.eps}, axis={self.axis}" + ("" if self.centered else ", not centered")


def partial_norm(norm: Any, channels: int) -> PartialNorm:
    """What a norm becomes whose weight and bias have `channels` entries by now; a PartialNorm itself, with that number.

    Args:
        norm: an nn.LayerNorm or nn.RMSNorm over one axis, an nn.GroupNorm of one group, or a PartialNorm.
        channels: how many stay.
    """
    if isinstance(norm, PartialNorm):
        norm.channels = channels
        return norm
    images = isinstance(norm, nn.GroupNorm)
    of = norm.num_channels if images else norm.normalized_shape[0]
    eps = torch.finfo(torch.float32).eps if norm.eps is None else norm.eps
    made = PartialNorm(channels, of, eps, 1 if images else -1, not isinstance(norm, nn.RMSNorm), weight=False, bias=False)
    made.weight, made.bias = norm.weight, getattr(norm, "bias", None)
    return made.train(norm.training)
