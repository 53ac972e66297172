"""State entropy as published code estimates it, for parity: one number per batch, and the mean of these.

    EASIER   on is z >= 0;  mean over all channels of H(p)
    EGP      on is z > 0;   mean over the channels with 0 < p < 1 of H(p), 0 where there is none; logarithms of at least 1e-5

p is taken over one mini-batch, so both depend on the batch size: the mean of batch entropies is never above the entropy of the
pooled shares, and n samples without positions are too low by about 1 / (2 n ln 2) bits. A last short batch counts as much as
a full one, as in both codes. Both are taken in eval mode here; EASIER's code takes its own during training.

And without any data (TLC), for an activation right behind a batch norm, whose outputs are taken to be N(beta, gamma^2):

    p = Phi(beta / |gamma|)        for gamma = 0: 1 where beta > 0, else 0

Sources: Quétu, Liao, Tartaglione, EASIER, ECML PKDD 2024; Liao, Quétu, Nguyen, Tartaglione, "Can Unstructured Pruning Reduce the
Depth in Deep Neural Networks?" (EGP), ICCVW 2023; Liao et al., "Till the Layers Collapse" (TLC), AAAI 2025.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.entropy.state import above, binary_entropy

_EGP_FLOOR = 1e-5  # the clamp of EGP's code; with it a share near 0 or 1 is not quite what the formula says


@dataclass(frozen=True)
class BatchMean:
    """Mean over batches of a layer's entropy.

    Attributes:
        total: sum over batches, bits, a tensor of one number.
        batches: how many.
    """

    total: Tensor
    batches: int = 1

    def __add__(self, other: BatchMean) -> BatchMean:
        return BatchMean(self.total + other.total, self.batches + other.batches)

    @property
    def value(self) -> float:
        """Bits."""
        return float(self.total) / self.batches


def easier(preactivation: Tensor, channel_dim: int = 1) -> BatchMean:
    """EASIER's entropy of a layer on one batch."""
    seen = preactivation.numel() // preactivation.shape[channel_dim]
    # z >= 0 is on: counted as the complement of z < 0, so that one function serves both.
    off = above(-preactivation, channel_dim) / seen
    return BatchMean(binary_entropy(off.cpu()).mean())


def egp(preactivation: Tensor, channel_dim: int = 1) -> BatchMean:
    """EGP's entropy of a layer on one batch."""
    p = above(preactivation, channel_dim).cpu().double() * preactivation.shape[channel_dim] / preactivation.numel()
    # EGP leaves the channels out that never switch in this batch.
    p = p[(p > 0) & (p < 1)]
    bits = -p * p.clamp_min(_EGP_FLOOR).log2() - (1 - p) * (1 - p).clamp_min(_EGP_FLOOR).log2()
    return BatchMean(bits.mean() if len(p) else torch.zeros((), dtype=torch.float64))


ESTIMATORS: dict[str, Callable[[Tensor, int], BatchMean]] = {"easier": easier, "egp": egp}


def from_norm(gamma: Tensor, beta: Tensor) -> Tensor:
    """Bits per channel, (c,), of an activation behind a batch norm of these parameters; no data is looked at."""
    gamma, beta = gamma.detach().cpu().double().abs(), beta.detach().cpu().double()
    on = torch.where(gamma > 0, torch.special.ndtr(beta / gamma), (beta > 0).double())  # gamma = 0 gives a constant beta
    return binary_entropy(on)
