"""State entropy of activations: how often each channel switches, counted over a whole data set.

An activation is on where its input is above 0. With p the share of (sample, position) pairs at which channel i is on,

    H_i = -p log2 p - (1 - p) log2(1 - p)      bits; 0 means always on (identity) or always off (zero)

The on-counts of all batches are added first and the entropy is taken once, so neither batch size nor order matter. Where a
activation has a third regime (ReLU6 above 6), it is counted too: its input may be always on and its output still bent.

Source: Quétu, Liao, Tartaglione, "The Simpler The Better: An Entropy-Based Importance Metric To Reduce Neural Networks' Depth",
ECML PKDD 2024. Departs from the authors' code: counts are pooled over batches, in eval mode, and an input of exactly 0 is off;
`estimators` has theirs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_LN2 = math.log(2)


@dataclass(frozen=True)
class States:
    """On-counts of one activation activation.

    Attributes:
        on: (c,) int64, times that each channel was on, the upper regime included.
        seen: number of (sample, position) pairs per channel.
        upper: (c,) int64, times that each channel was in the upper regime; None where there is none.
    """

    on: Tensor
    seen: int
    upper: Tensor | None = None

    def __add__(self, other: States) -> States:
        upper = None if self.upper is None or other.upper is None else self.upper + other.upper
        return States(self.on + other.on, self.seen + other.seen, upper)

    def cpu(self) -> States:
        """The same counts in main memory."""
        return States(self.on.cpu(), self.seen, None if self.upper is None else self.upper.cpu())

    @property
    def share_on(self) -> Tensor:
        """Share of time each channel is on, (c,), in [0, 1]."""
        return self.on.cpu().double() / max(self.seen, 1)

    @property
    def entropy(self) -> Tensor:
        """Bits per channel, (c,), in [0, 1]: on or off."""
        return binary_entropy(self.share_on)

    @property
    # In integers, since a share of 1 - 1e-9 is not always on.
    def always_on(self) -> float:
        """Share of channels that were never off and never changed between on and the upper regime."""
        stayed = self.on == self.seen
        if self.upper is not None:
            stayed = stayed & ((self.upper == 0) | (self.upper == self.seen))
        return float(stayed.double().mean())

    @property
    def always_off(self) -> float:
        """Share of channels that were never on."""
        return float((self.on == 0).double().mean())


def count(preactivation: Tensor, channel_dim: int = 1, *, low: float = 0.0, high: float | None = None) -> States:
    """On-counts of one batch, left on its device.

    Args:
        preactivation: values before the activation, any shape with the channels on `channel_dim`.
        channel_dim: may be negative.
        low: above it a channel is on.
        high: above it a channel is in the upper regime.
    """
    seen = preactivation.numel() // preactivation.shape[channel_dim]
    upper = None if high is None else above(preactivation, channel_dim, high)
    return States(above(preactivation, channel_dim, low), seen, upper)


def above(preactivation: Tensor, channel_dim: int, limit: float = 0.0) -> Tensor:
    """Times that each channel is above a limit, (c,), int64."""
    z = preactivation.detach().float()
    # sign of the clamped value: 1 above the limit, else 0, without a boolean copy.
    over = (z if limit == 0 else z - limit).clamp_min(0).sign_().movedim(channel_dim, 1 if z.ndim > 1 else 0)
    # 0 and 1 as floats sum several times faster than booleans, and exactly up to 2^24 per sample.
    per_sample = over.flatten(2).sum(2) if over.ndim > 2 else over
    return per_sample.long().sum(0) if over.ndim > 1 else over.long()


def binary_entropy(share: Tensor) -> Tensor:
    """-p log2 p - (1 - p) log2(1 - p), in bits; 0 at p = 0 and p = 1."""
    p = share.double().clamp(0, 1)
    return (torch.special.entr(p) + torch.special.entr(1 - p)) / _LN2
