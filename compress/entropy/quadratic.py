"""The loss of a layer as a function of the channels that it may read: everything the selection needs, in two matrices.

For inputs x (centered, columns of channel c together), targets y and the second moment G of the loss's gradient at the output,
the estimated loss of a regression on the columns S is

    loss(S) = 1/2 tr G E(S) = 1/2 (total - ||A_SS^{-1/2} B_S||^2),   A = C_xx + ridge,  B = C_xy L,  L L^T = G,  total = tr G C_yy

G (the Fisher matrix, summed over positions) puts the errors of all layers in one currency: nats of divergence from the dense
model per sample. Columns that always stay (of other groups) are taken out beforehand by their Schur complement; several
consumers of one group simply have several quadratics, whose losses add.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.entropy.moments import Centered
from compress.entropy.ridge import RIDGE, with_ridge

_DIRECTIONS = 0.9995  # share of the weighted target variance that the kept output directions must hold


@dataclass(frozen=True)
class Quadratic:
    """One consumer of a group.

    Attributes:
        a: (channels * taps, channels * taps), float64, columns channel-major.
        b: (channels * taps, r), float64.
        total: loss without any channel.
        channels: of the group.
    """

    a: Tensor
    b: Tensor
    total: float
    channels: int

    @property
    def taps(self) -> int:
        """Columns per channel."""
        return self.a.shape[0] // self.channels


def quadratic(moments: Centered, weighting: Tensor | None, owner: Tensor, channels: int, ridge: float = RIDGE) -> Quadratic:
    """Build the loss of one consumer.

    Args:
        moments: centered moments of one regression (g = 1).
        weighting: G, (m, m); None counts all outputs alike.
        owner: (q,), channel of the group behind each column, -1 where the column always stays.
        channels: of the group.
        ridge: relative to the mean variance of a column.
    """
    yy = moments.yy[0]
    total = float(yy.diagonal().sum() if weighting is None else (weighting.double() * yy).sum())  # both are symmetric
    # What is whitened takes several such matrices for a moment, so the other one is made behind it.
    b = moments.xy[0] @ _whiten(weighting, yy)
    a = with_ridge(moments.xx[0], moments.mean_x[0], ridge)
    # Columns channel-major, whatever order the layer has them in.
    order = [torch.nonzero(owner == c)[:, 0] for c in range(channels)]
    stays = torch.nonzero(owner < 0)[:, 0]
    gone = torch.cat(order)
    # Schur complement: the loss after the columns that always stay have been fitted.
    if len(stays):
        factor = torch.linalg.cholesky(a[stays][:, stays])
        x, y = (torch.linalg.solve_triangular(factor, t, upper=False) for t in (a[stays][:, gone], b[stays]))
        total -= float(y.square().sum())
        a, b = a[gone][:, gone] - x.T @ x, b[gone] - x.T @ y
    elif not torch.equal(gone, torch.arange(len(owner))):
        a, b = a[gone][:, gone], b[gone]
    a, b = _equal_taps(a, b, [len(columns) for columns in order])
    # 1/2 of the docstring: all losses below are plain squares.
    return Quadratic(a, b * 0.5**0.5, 0.5 * total, channels)


def alone(products: Tensor, owner: Tensor, channels: int) -> Quadratic:
    """The loss of channels that go for themselves, since no layer that could be fitted reads them.

        loss(S) = sum over c not in S of 1/2 sum over the outputs i, j of channel c of G_ij E y_i y_j

    What two channels have in common is left out, as in Optimal Brain Damage.

    Args:
        products: G_ij E y_i y_j, (m, m).
        owner: (m,), channel of the group behind each output, -1 where it is another one's.
        channels: of the group.

    Source: LeCun, Denker & Solla, "Optimal Brain Damage", NeurIPS 1989.
    """
    of = torch.zeros(len(owner), channels, dtype=torch.float64)
    own = torch.nonzero(owner >= 0)[:, 0]
    of[own, owner[own]] = 1.0
    worth = 0.5 * (of * (products @ of)).sum(0).clamp_min(0)  # rounding alone takes it below 0
    return Quadratic(torch.eye(channels, dtype=torch.float64), worth.sqrt()[:, None], float(worth.sum()), channels)


def _whiten(weighting: Tensor | None, yy: Tensor) -> Tensor:
    """L with L L^T = G, columns rotated to the principal directions of the weighted targets; idle directions are left out."""
    half = None if weighting is None else _half(weighting.double())
    values, vectors = torch.linalg.eigh(yy if half is None else half.T @ yy @ half)
    values, vectors = values.flip(0).clamp_min(0), vectors.flip(1)
    # Fewer directions make every solve cheaper; what is left out carries next to no weighted variance.
    enough = int((values.cumsum(0) < _DIRECTIONS * values.sum()).sum()) + 1
    return vectors[:, :enough] if half is None else half @ vectors[:, :enough]


def _half(weighting: Tensor) -> Tensor:
    """Any L with L L^T = G: what is rotated afterwards does not depend on which."""
    half, failed = torch.linalg.cholesky_ex(weighting)
    if not failed:
        return half
    values, vectors = torch.linalg.eigh(weighting)
    return vectors * values.clamp_min(0).sqrt()  # a Fisher matrix from few samples may have eigenvalues a little below 0


def _equal_taps(a: Tensor, b: Tensor, taps: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Pad channels with fewer columns by columns that are worth nothing, so that every channel has as many."""
    most = max(taps)
    if min(taps) == most:
        return a, b
    place = torch.cat([torch.arange(n) + c * most for c, n in enumerate(taps)])
    # The identity on padded columns keeps the matrix positive definite, and b = 0 makes them worth nothing.
    padded = torch.eye(len(taps) * most, dtype=a.dtype)
    padded[place[:, None], place] = a
    wider = torch.zeros(len(taps) * most, b.shape[1], dtype=b.dtype)
    wider[place] = b
    return padded, wider


def columns(channels: Sequence[int] | Tensor, taps: int) -> Tensor:
    """Column numbers of some channels, in their order."""
    return (torch.as_tensor(channels)[:, None] * taps + torch.arange(taps)).flatten()


def loss(forms: Sequence[Quadratic], kept: Sequence[int]) -> float:
    """Estimated loss of all consumers when only these channels are left and the consumers are refitted."""
    total = 0.0
    for form in forms:
        at = columns(kept, form.taps)
        half = torch.linalg.solve_triangular(torch.linalg.cholesky(form.a[at][:, at]), form.b[at], upper=False)
        total += form.total - float(half.square().sum())
    return max(total, 0.0)  # the true loss is no less than 0


def blocks(matrix: Tensor, taps: int) -> Tensor:
    """Diagonal blocks, (channels, taps, taps)."""
    n = matrix.shape[0] // taps
    return matrix.view(n, taps, n, taps).diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def block_norms(diagonal: Tensor, rows: Tensor) -> Tensor:
    """Tr R_c^T D_c^{-1} R_c for every channel c: D (channels, taps, taps) positive definite, R (channels * taps, r)."""
    taps = diagonal.shape[1]
    if taps == 1:
        return rows.square().sum(1) / diagonal[:, 0, 0]
    rows = rows.view(len(diagonal), taps, -1)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(diagonal), rows, upper=False).square().sum((1, 2))
