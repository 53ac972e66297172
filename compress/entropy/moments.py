"""Second moments of a layer's inputs and targets at sampled positions, added up batch by batch.

A convolution is a linear layer at every output position: row x holds the input patch, column j of it channel j // taps, tap
j % taps; y is the target at that position. From T rows of group g

    s_x = sum x    s_y = sum y    S_xx = sum x x^T    S_xy = sum x y^T    S_yy = sum y y^T

follow all centred second moments, hence every ridge regression of y on a subset of the columns. Memory is a few times that of
S_xx, whatever the number of images. Products of some thousand rows are float32, sums of these are float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 384  # columns
_ROWS = 4096  # rows that wait for a product, or as many as there are columns


@dataclass(frozen=True)
class Window:
    """Geometry of a 2-D convolution. `padding` is (left, right, top, bottom)."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    padding_mode: str = "constant"

    @property
    def taps(self) -> int:
        """Kernel positions per channel."""
        return self.kernel[0] * self.kernel[1]


class Positions(NamedTuple):
    """Sampled output positions, three index vectors of equal length: sample, row, column."""

    sample: Tensor
    row: Tensor
    column: Tensor


class Centred(NamedTuple):
    """Centred moments, divided by the number of rows: means (g, q), (g, m); covariances (g, q, q), (g, q, m), (g, m, m)."""

    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor


def sample(samples: int, height: int, width: int, rows: int, generator: torch.Generator) -> Positions:
    """`rows` different output positions of a batch, each equally likely; all of them where there are no more."""
    total = samples * height * width
    chosen = torch.arange(total) if rows >= total else torch.randperm(total, generator=generator)[:rows]
    return Positions(chosen // (height * width), chosen // width % height, chosen % width)


def patches(x: Tensor, window: Window, at: Positions) -> Tensor:
    """Input patches of a convolution at some of its output positions.

    Args:
        x: input, (n, c, h, w).
        window: the convolution's geometry.
        at: output positions.

    Returns:
        (rows, c * taps), channel-major like the flattened weight of the layer.
    """
    at = Positions(*(v.to(x.device) for v in at))
    if window.taps == 1 and not any(window.padding):
        return x[at.sample, :, at.row * window.stride[0], at.column * window.stride[1]]
    border = window.padding if window.padding_mode == "constant" else (0, 0, 0, 0)
    if border != window.padding:
        x = F.pad(x, window.padding, mode=window.padding_mode)
    down, right = (torch.arange(window.kernel[d], device=x.device) * window.dilation[d] for d in (0, 1))
    rows = at.row[:, None, None] * window.stride[0] + down[:, None] - border[2]
    columns = at.column[:, None, None] * window.stride[1] + right - border[0]
    inside = None
    if any(border):
        # Zero padding without a padded copy of the whole input: positions outside read something and are set to zero.
        inside = (rows >= 0) & (rows < x.shape[2]) & (columns >= 0) & (columns < x.shape[3])
        rows, columns = rows.clamp(0, x.shape[2] - 1), columns.clamp(0, x.shape[3] - 1)
    found = x[at.sample[:, None, None], :, rows, columns]  # (rows, kh, kw, c)
    if inside is not None:
        found = found * inside[..., None]
    return found.permute(0, 3, 1, 2).reshape(len(at.sample), -1)


class Moments:
    """Running sums over batches. `groups` > 1: that many independent regressions side by side (grouped convolution)."""

    def __init__(self, groups: int = 1):
        self.groups = groups
        self.rows = 0
        self._sums: tuple[Tensor, ...] | None = None
        self._waiting: list[tuple[Tensor, Tensor | None]] = []

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Add rows.

        Args:
            x: inputs, (rows, groups * q).
            y: targets, (rows, groups * m); left out throughout where they are linear in x (see `centred_linear`).
        """
        if not len(x):
            return
        self._waiting.append((x.float(), None if y is None else y.float()))
        self.rows += len(x)
        if sum(len(rows) for rows, _ in self._waiting) >= max(_ROWS, x.shape[1] // self.groups):
            self._flush()

    def _flush(self) -> None:
        """Multiply the rows that wait, in one product: adding a wide matrix in float64 costs as much as making it."""
        if not self._waiting:
            return
        x = torch.cat([rows for rows, _ in self._waiting])
        targets = [rows for _, rows in self._waiting if rows is not None]
        self._waiting = []
        x = x.reshape(len(x), self.groups, -1).transpose(0, 1)
        batch: tuple[Tensor, ...] = (x.sum(1), _gram(x))
        if targets:
            y = torch.cat(targets)
            y = y.reshape(len(y), self.groups, -1).transpose(0, 1)
            batch += (y.sum(1), x.mT @ y, y.mT @ y)
        wide = torch.float32 if x.device.type == "mps" else torch.float64  # mps has no float64
        if self._sums is None:
            self._sums = tuple(t.to(wide) for t in batch)
        else:
            for total, part in zip(self._sums, batch, strict=True):
                total += part

    @property
    def nbytes(self) -> int:
        """Memory of the sums."""
        self._flush()
        return sum(t.numel() * t.element_size() for t in self._sums or ())

    def centred(self) -> Centred:
        """Means and covariances, float64 on the CPU.

        Raises:
            ValueError: nothing was added, or no targets.
        """
        mean_x, xx, *rest = self._means()
        if not rest:
            raise ValueError("moments without targets were asked for their targets; add them, or give the weights")
        mean_y, xy, yy = rest
        return Centred(mean_x, mean_y, xx, xy - _outer(mean_x, mean_y), yy - _outer(mean_y, mean_y))

    def centred_linear(self, weight: Tensor) -> Centred:
        """The same for targets y = W x + b, which need no sums of their own: C_xy = C_xx W^T, C_yy = W C_xx W^T.

        Args:
            weight: (groups * m, q), the layer's own weights, flattened. The mean of y is without b.
        """
        mean_x, xx, *_ = self._means()
        w = weight.detach().cpu().double().reshape(self.groups, -1, xx.shape[1])
        xy = xx @ w.mT
        return Centred(mean_x, (w @ mean_x[:, :, None])[:, :, 0], xx, xy, w @ xy)

    def _means(self) -> list[Tensor]:
        """Sums over the number of rows; the inputs' second moment is centred."""
        self._flush()
        if self._sums is None:
            raise ValueError("moments of no rows were asked for; add a batch first")
        mean_x, xx, *rest = (t.cpu().double() / self.rows for t in self._sums)
        return [mean_x, xx - _outer(mean_x, mean_x), *rest]


def _outer(a: Tensor, b: Tensor) -> Tensor:
    return a[:, :, None] * b[:, None, :]


def _gram(x: Tensor) -> Tensor:
    """x^T x of (g, rows, q); wide ones block by block, the mirrored blocks only once."""
    width = x.shape[2]
    if width < _BLOCK * 2:
        return x.mT @ x
    gram = x.new_empty(x.shape[0], width, width)
    for i in range(0, width, _BLOCK):
        part = x[:, :, i : i + _BLOCK].mT @ x[:, :, i:]
        gram[:, i : i + _BLOCK, i:] = part
        gram[:, i:, i : i + _BLOCK] = part.mT
    return gram
