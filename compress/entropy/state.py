"""State entropy of rectifiers: how often each channel switches, counted over a whole data set.

A rectifier is on where its input is above 0. With p the share of (sample, position) pairs at which channel i is on,

    H_i = -p log2 p - (1 - p) log2(1 - p)      bits; 0 means always on (identity) or always off (zero)

The on-counts of all batches are added first and the entropy is taken once, so neither batch size nor order matter. (The mean of
per-batch entropies, which some published code uses, is never above this value.)

Source: Quétu, Liao, Tartaglione, "The Simpler The Better: An Entropy-Based Importance Metric To Reduce Neural Networks' Depth",
ECML PKDD 2024. Departs from the authors' code: counts are pooled over batches, and an input of exactly 0 is off.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class States:
    """On-counts of one activation site.

    Attributes:
        on: (c,) float64, times that each channel was on.
        seen: number of (sample, position) pairs per channel.
    """

    on: Tensor
    seen: int

    def __add__(self, other: States) -> States:
        return States(self.on + other.on, self.seen + other.seen)

    @property
    def share_on(self) -> Tensor:
        """Share of time each channel is on, (c,), in [0, 1]."""
        return self.on / max(self.seen, 1)

    @property
    def entropy(self) -> Tensor:
        """Bits per channel, (c,), in [0, 1]."""
        return binary_entropy(self.share_on)

    @property
    def always_on(self) -> float:
        """Share of channels that were never off."""
        return float((self.on == self.seen).double().mean())

    @property
    def always_off(self) -> float:
        """Share of channels that were never on."""
        return float((self.on == 0).double().mean())


def count(preactivation: Tensor, channel_dim: int = 1) -> States:
    """On-counts of one batch.

    Args:
        preactivation: values before the rectifier, any shape with the channels on `channel_dim`.
        channel_dim: may be negative.
    """
    on = preactivation.detach().float().clamp_min(0).sign_().movedim(channel_dim, 1 if preactivation.ndim > 1 else 0)
    # 0 and 1 as floats sum several times faster than booleans, and exactly up to 2^24 per sample.
    per_sample = on.flatten(2).sum(2) if on.ndim > 2 else on
    totals = per_sample.double().sum(0) if on.ndim > 1 else on.double()
    return States(totals.cpu(), preactivation.numel() // preactivation.shape[channel_dim])


def binary_entropy(share: Tensor) -> Tensor:
    """-p log2 p - (1 - p) log2(1 - p), in bits; 0 at p = 0 and p = 1."""
    p = share.double().clamp(0, 1)
    return (torch.special.entr(p) + torch.special.entr(1 - p)) / torch.log(torch.tensor(2.0, dtype=torch.float64))
