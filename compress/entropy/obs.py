"""Greedy block-OBS: remove, again and again, the channel whose loss is least after all others are refitted.

With P = A^{-1} and W = P B over the channels still there, removing channel c (columns c) and refitting the rest raises the
loss by

    tr W_c^T (P_cc)^{-1} W_c,     then   W -= P_:c P_cc^{-1} W_c,   P -= P_:c P_cc^{-1} P_c:

One inverse at the start, block downdates after it. Wide layers lose several channels at a time, so that a whole sweep costs
about as much as the inverse. The sweep gives the loss for every number of channels: the curve that a budget is split by.

Source: Hassibi & Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", NeurIPS 1992; blocks as in
Frantar & Alistarh, "Optimal Brain Compression", NeurIPS 2022. Written from the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.entropy.quadratic import Quadratic, block_norms, blocks, columns

_WIDE = 1024  # columns beyond which channels go several at a time, in single precision
_SHARE = 1 / 16  # of the channels still there that go at once in a wide layer
_SLACK = 1.25  # stored over living columns at which the matrices are made smaller: copying costs as much as computing


@dataclass(frozen=True)
class Sweep:
    """A whole elimination.

    Attributes:
        order: channels, first removed first; the last ones never went.
        losses: (channels + 1,), estimated loss with n channels left; infinite below the number at which the sweep ended.
    """

    order: tuple[int, ...]
    losses: Tensor

    def kept(self, n: int) -> list[int]:
        """The n channels that stay longest, ascending."""
        return sorted(self.order[len(self.order) - n :])


class _Rest:
    """The channels still there of one consumer. Rows and columns of those that went are zero until the next compaction."""

    def __init__(self, form: Quadratic):
        # P and W of the docstring over all channels; from here on they are only downdated.
        self.taps, self.stored = form.taps, torch.arange(form.channels)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(form.a))
        self.fitted = self.inverse @ form.b
        # total - tr B^T A^{-1} B: what the best fit with all channels leaves.
        self.loss = form.total - float((form.b * self.fitted).sum())
        # Single precision halves time and memory where both are large; losses are still added in double.
        if form.a.shape[0] > _WIDE:
            self.inverse, self.fitted = self.inverse.float(), self.fitted.float()

    def costs(self, alive: Tensor) -> Tensor:
        """What each living channel costs, in the order of `alive`."""
        # `stored` stays sorted, so the place of a channel is found without a table.
        place = torch.searchsorted(self.stored, alive)
        rows = self.fitted.view(len(self.stored), self.taps, -1)[place].flatten(0, 1)
        return block_norms(blocks(self.inverse, self.taps)[place], rows).double()

    def remove(self, gone: Tensor, alive: Tensor) -> None:
        """Take channels out; `alive` are those that stay."""
        out = columns(torch.searchsorted(self.stored, gone), self.taps)
        across = self.inverse[out]
        # One Cholesky factor of P_cc serves both downdates: P_:c P_cc^{-1} P_c: is side^T side.
        factor = torch.linalg.cholesky(across[:, out])
        side = torch.linalg.solve_triangular(factor, across, upper=False)
        weights = torch.linalg.solve_triangular(factor, self.fitted[out], upper=False)
        self.loss += float(weights.double().square().sum())
        self.fitted.addmm_(side.T, weights, alpha=-1)
        self.inverse.addmm_(side.T, side, alpha=-1)
        if len(self.stored) > _SLACK * len(alive):
            rest = columns(torch.searchsorted(self.stored, alive), self.taps)
            self.inverse, self.fitted, self.stored = self.inverse[rest][:, rest], self.fitted[rest], alive


def eliminate(forms: Sequence[Quadratic], until: int = 1) -> Sweep:
    """Remove channels down to `until`.

    Args:
        forms: the consumers of one group, at least one.
        until: channels that stay, at least 1.
    """
    channels = forms[0].channels
    rests = [_Rest(form) for form in forms]
    alive = torch.arange(channels)
    order: list[int] = []
    losses = torch.full((channels + 1,), torch.inf, dtype=torch.float64)
    losses[channels] = sum(r.loss for r in rests)
    wide = max(form.a.shape[0] for form in forms) > _WIDE
    while len(alive) > until:
        costs = torch.stack([r.costs(alive) for r in rests]).sum(0)
        # Wide layers lose a share at a time: one downdate for all of them, at the price of some order.
        n = min(max(1, int(len(alive) * _SHARE)) if wide else 1, len(alive) - until)
        at = costs.argsort()[:n]
        gone = alive[at]
        stay = torch.ones(len(alive), dtype=torch.bool)
        stay[at] = False
        before, alive = losses[len(alive)], alive[stay]
        for r in rests:
            r.remove(gone.sort().values, alive)
        after = torch.tensor(sum(r.loss for r in rests), dtype=torch.float64)
        steps = torch.arange(1, n + 1, dtype=torch.float64) / n
        # Within a step that takes several channels the loss is only known at its ends: a straight line between.
        losses[len(alive) + n - torch.arange(1, n + 1)] = before + (after - before) * steps
        order += gone.tolist()
    # Without any channel no fit is left: the docstring's total.
    if until <= 1:
        losses[0] = sum(form.total for form in forms)
    return Sweep((*order, *alive.tolist()), losses.clamp_min(0))  # rounding may take a loss below 0
