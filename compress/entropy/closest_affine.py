"""The affine function that is closest to an activation on the values that it really sees, per channel, from sums alone.

Of the inputs z and the outputs a of one channel, over all samples and positions,

    slope = Cov(z, a) / Var z        offset = E a - slope E z        residual = Var a - slope Cov(z, a)

minimize E (slope z + offset - a)^2. Always on gives (1, 0), always off (0, 0), exactly. A constant input has no slope: (0, E a).
Sums are taken about the first batch's means, so that a variance much smaller than the square of its mean is not lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.ranks import Ranks

_CONSTANT = 1e-12
"""Variance by squared mean below which an input is constant up to float32's rounding."""


@dataclass(frozen=True)
class Fit:
    """Affine functions of one activation, all (c,), float64.

    Attributes:
        slope: per channel.
        offset: per channel.
        residual: mean squared distance from the activation.
        variance: of the activation's output.
    """

    slope: Tensor
    offset: Tensor
    residual: Tensor
    variance: Tensor

    @property
    def error(self) -> float:
        """Residual of all channels by their variance, in [0, 1]; 0 where the affine function is the activation."""
        # the activation may be constant on all channels
        return float(self.residual.sum() / self.variance.sum().clamp_min(1e-300))


class AffineSums:
    """What the affine functions of one activation are fitted to, added up batch by batch; `channel_dim` may be negative."""

    def __init__(self, channel_dim: int = 1):
        self.channel_dim = channel_dim
        self.seen = 0
        self.shift: tuple[Tensor, Tensor] | None = None
        self.sums = torch.zeros(5, 0, dtype=torch.float64)

    def about(self, z: Tensor, a: Tensor) -> None:
        """Take the shift from a batch, so that the squares below do not cancel (docstring); else that is the first one added."""
        z, a = (t.detach().float().movedim(self.channel_dim, 1) for t in (z, a))
        self.shift = _mean(z), _mean(a)
        self.sums = torch.zeros(5, z.shape[1], dtype=torch.float64)

    def add(self, z: Tensor, a: Tensor) -> None:
        """Take in one batch of inputs and outputs of the activation."""
        if self.shift is None:
            self.about(z, a)
        assert self.shift is not None
        z, a = (t.detach().float().movedim(self.channel_dim, 1) for t in (z, a))
        view = (1, -1, *[1] * (z.ndim - 2))
        z, a = (t - s.view(view) for t, s in zip((z, a), self.shift, strict=True))
        # Products are float32 and so is the sum within a sample; samples and batches are added in float64.
        parts = torch.stack([_per_sample(t) for t in (z, a, z * z, a * a, z * a)])
        self.sums += parts.cpu().double().sum(1)
        self.seen += z.numel() // z.shape[1]

    def join(self, ranks: Ranks) -> None:
        """Put together what every process has added, about the same shift; some may have added nothing."""
        parts = ranks.gathered((self.sums, self.seen))
        self.sums, self.seen = torch.stack([sums for sums, _ in parts]).sum(0), sum(seen for _, seen in parts)

    def fit(self) -> Fit:
        """The affine functions of least squares.

        Raises:
            ValueError: nothing was added.
        """
        if self.shift is None:
            raise ValueError("affine functions need at least one batch")
        z, a, zz, aa, za = self.sums / self.seen
        # Rounding can take a variance of 0 below it.
        variance_z, variance_a, covariance = zz - z * z, (aa - a * a).clamp_min(0), za - z * a
        mean_z, mean_a = (s.cpu().double() + t for s, t in zip(self.shift, (z, a), strict=True))
        moves = variance_z > _CONSTANT * mean_z.square() + 1e-30
        # The inner where keeps 0 / 0 out: the outer one computes both sides.
        slope = torch.where(moves, covariance / torch.where(moves, variance_z, 1.0), 0.0)
        offset = mean_a - slope * mean_z
        return Fit(slope, offset, (variance_a - slope * covariance).clamp_min(0), variance_a)


def _mean(x: Tensor) -> Tensor:
    return x.mean([d for d in range(x.ndim) if d != 1])


def _per_sample(x: Tensor) -> Tensor:
    """Sums over positions, (n, c)."""
    return x.flatten(2).sum(2) if x.ndim > 2 else x
