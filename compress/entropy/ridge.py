"""Ridge regression from moments: the best weights for the inputs that a layer still has.

With centered moments, mean mu of the inputs and my of the targets, and ridge r = ridge * mean of diag(C_xx):

    W = C_xy^T (C_xx + r I)^{-1}        b = my - W mu

The intercept b is exact and never penalised. The output errors' weighting does not appear: each output has its own best row.
Where there are fewer rows T than columns, the same weights come from the rows X, Y themselves (centered), in a system of T:

    W = Y^T (X X^T + T r I)^{-1} X        residual  Y - X W^T = T r (X X^T + T r I)^{-1} Y
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from compress.entropy.moments import Moments

RIDGE = 1e-3
"""Relative to the mean variance of an input column; 1e-4 to 1e-2 make no difference in accuracy."""

_CONSTANT = 1e-12
"""Variance, relative to the square of the mean, at or below which an input counts as constant: float32 has 1e-7."""
_COLUMNS = 1024  # that are double precision at once
_NOTHING = 1e-38
"""The smallest number that float32 holds with all its digits."""


class Fit(NamedTuple):
    """Fitted layer.

    Attributes:
        weight: (groups * m, q), float32.
        bias: (groups * m,), float32.
        error: mean squared error over the targets' variance, on the rows of the moments.
    """

    weight: Tensor
    bias: Tensor
    error: float


def ridge(moments: Moments, columns: Tensor | None = None, ridge: float = RIDGE) -> Fit:
    """Regress the targets on the inputs.

    Args:
        moments: of inputs and targets.
        columns: input columns to use, all by default.
        ridge: relative to the mean variance of the columns in use.
    """
    if columns is None and moments.few:
        return _by_rows([*moments.parts()], ridge)
    mean_x, mean_y, xx, xy, yy = moments.centered()
    if columns is not None:
        mean_x, xx, xy = mean_x[:, columns], xx[:, columns][:, :, columns], xy[:, columns]
    weight = solve(with_ridge(xx, mean_x, ridge), xy).mT
    bias = mean_y - (weight @ mean_x[..., None])[..., 0]
    # Diagonal of C_yy - 2 W C_xy + W C_xx W^T: true for any W, where C_yy - W C_xy would hold without a ridge only.
    residual = yy.diagonal(dim1=1, dim2=2) - 2 * (weight * xy.mT).sum(2) + ((weight @ xx) * weight).sum(2)
    error = float(residual.sum() / yy.diagonal(dim1=1, dim2=2).sum().clamp_min(1e-30))
    return Fit(weight.flatten(0, 1).float(), bias.flatten().float(), max(error, 0.0))


def _by_rows(parts: Sequence[tuple[Tensor, Tensor | None]], ridge: float) -> Fit:
    """The fit from fewer rows than columns, of one regression. The rows may be most of the memory: they stay where they are, and
    only some columns at a time are put together.
    """
    targets = [y for _, y in parts if y is not None]
    if not targets:
        raise ValueError("moments without targets were asked for a fit; add them, or give the weights")
    y = torch.cat(targets).cpu().double()
    mean_y, (rows, width) = y.mean(0), (len(y), parts[0][0].shape[1])
    y -= mean_y
    mean_x, variance = torch.zeros(width, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    blocks = [slice(start, start + _COLUMNS) for start in range(0, width, _COLUMNS)]

    def centered(block: slice) -> Tensor:
        wide = torch.cat([x[:, block] for x, _ in parts]).cpu().double()
        mean_x[block] = wide.mean(0)
        return wide.sub_(mean_x[block])

    products = torch.zeros(rows, rows, dtype=torch.float64)
    for wide in map(centered, blocks):
        products.addmm_(wide, wide.T)
        variance += wide.square().sum()
    r = rows * ridge * _scale(variance / (rows * width), mean_x)
    products.diagonal().add_(r)
    half = solve(products, y)
    weight, bias = torch.empty(y.shape[1], width), mean_y
    for block in blocks:
        exact = half.T @ centered(block)
        weight[:, block] = exact
        bias = bias - exact @ mean_x[block]
    error = float((r * half).square().sum() / y.square().sum().clamp_min(1e-30))
    return Fit(weight, bias.float(), error)


def with_ridge(covariance: Tensor, mean: Tensor, ridge: float) -> Tensor:
    """C + r I, r relative to the mean of the diagonal; never exactly singular, even for inputs that are constant.

    Args:
        covariance: of the inputs, (..., q, q).
        mean: of the inputs, (..., q). The rounding of its squares is all that the variance of a constant input is.
        ridge: r, relative.
    """
    scale = _scale(covariance.diagonal(dim1=-2, dim2=-1).mean(-1), mean)
    found = covariance.clone()
    found.diagonal(dim1=-2, dim2=-1).add_(ridge * scale[..., None])
    return found


def _scale(variance: Tensor, mean: Tensor) -> Tensor:
    """The mean variance of the inputs, as far as it is more than rounding; never 0."""
    scale = torch.maximum(variance, _CONSTANT * mean.square().mean(-1).clamp(max=1.0))
    return torch.where(scale > _NOTHING, scale, _CONSTANT)  # inputs may all be 0


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """matrix^{-1} right for a symmetric positive definite matrix."""
    return torch.cholesky_solve(right, torch.linalg.cholesky(matrix))
