"""Second moments of a layer's inputs and targets at sampled positions, added up batch by batch.

A convolution is a linear layer at every output position: row x holds the input patch, column j of it channel j // taps, tap
j % taps; y is the target at that position. Output position o of a convolution with stride s, dilation d and padding p reads with
tap t the input at

    i = s o + d t - p                          convolution
    i = (o + p - d t) / s, where that divides  transposed convolution

and zero where that is outside. A linear layer is a convolution without axes. From T rows of group g

    m_x = mean x    m_y = mean y    C_xx = sum (x - m_x) (x - m_x)^T    C_xy, C_yy likewise

follows every ridge regression of y on a subset of the columns. Memory is a few times that of C_xx, whatever the number of images.
Rows wait until there are some thousand; these are centered on their own means (a channel that is always on may lie at 100 and
vary by 0.01: its square would drown) and multiplied in float32, and then added in float64, where two sets of a and b rows give

    C = C_a + C_b + a b / (a + b) (m_b - m_a) (m_b - m_a)^T

Source: Chan, Golub, LeVeque, "Algorithms for Computing the Sample Variance", The American Statistician 37 (1983), eq. 2.1, for
matrices.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.ranks import Ranks

_BLOCK = 384  # columns
_ROWS = 4096  # rows that wait for a product, or as many as there are columns


@dataclass(frozen=True)
class Window:
    """Geometry of a convolution with any number of axes, one entry per axis. Nothing at all stands for a linear layer.

    Attributes:
        kernel, stride, dilation: as in torch.nn.
        padding: (before, after) of each axis.
        padding_mode: "constant" for zeros, else as in torch.nn.functional.pad.
        transposed: whether the convolution is transposed.
    """

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    padding_mode: str = "constant"
    transposed: bool = False

    @property
    def taps(self) -> int:
        """Kernel positions per channel."""
        return math.prod(self.kernel)


class Positions(NamedTuple):
    """Sampled output positions: index vectors of equal length for the sample and for each axis behind the channels."""

    sample: Tensor
    place: tuple[Tensor, ...]


class Centered(NamedTuple):
    """Centered moments, divided by the number of rows: means (g, q), (g, m); covariances (g, q, q), (g, q, m), (g, m, m)."""

    mean_x: Tensor
    mean_y: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor

    def parts(self) -> list[Centered]:
        """Each regression by itself, g = 1."""
        return [Centered(*(t[g : g + 1] for t in self)) for g in range(len(self.mean_x))]


def sample(sizes: Sequence[int], rows: int, generator: torch.Generator) -> Positions:
    """`rows` different output positions of a batch, each equally likely; all of them where there are no more.

    Args:
        sizes: (samples, *space).
        rows: how many.
        generator: of the choice.
    """
    total = math.prod(sizes)
    chosen = torch.arange(total) if rows >= total else torch.randperm(total, generator=generator)[:rows]
    first, *place = torch.unravel_index(chosen, tuple(sizes))
    return Positions(first, tuple(place))


def entries(x: Tensor, at: Positions) -> Tensor:
    """Channels of a tensor (n, c, *space) at some positions, (rows, c)."""
    return x[(at.sample.to(x.device), slice(None), *(p.to(x.device) for p in at.place))]


def patches(x: Tensor, window: Window, at: Positions) -> Tensor:
    """Input patches of a convolution at some of its output positions.

    Args:
        x: input, (n, c, *space).
        window: the convolution's geometry.
        at: output positions.

    Returns:
        (rows, c * taps), channel-major like the flattened weight of a convolution.
    """
    axes = len(window.kernel)
    border = window.padding
    if window.padding_mode != "constant":
        x = F.pad(x, [side for pair in reversed(border) for side in pair], mode=window.padding_mode)
        border = ((0, 0),) * axes
    if window.taps == 1 and not window.transposed and not any(map(any, border)):
        return entries(x, Positions(at.sample, tuple(p * s for p, s in zip(at.place, window.stride, strict=True))))
    indices: list[Tensor] = []
    inside = torch.ones(1, dtype=torch.bool, device=x.device)
    for d, place in enumerate(at.place):
        row, column = ([-1 if k == side else 1 for k in range(axes + 1)] for side in (0, d + 1))
        o, t = place.to(x.device).view(row), torch.arange(window.kernel[d], device=x.device).view(column)
        if window.transposed:
            i = o + border[d][0] - window.dilation[d] * t
            inside = inside & (i % window.stride[d] == 0)
            i = i.div(window.stride[d], rounding_mode="floor")
        else:
            i = window.stride[d] * o + window.dilation[d] * t - border[d][0]
        # Zero padding without a padded copy of the whole input: positions outside read something and are set to zero.
        inside = inside & (i >= 0) & (i < x.shape[2 + d])
        indices.append(i.clamp(0, x.shape[2 + d] - 1))
    found = x[(at.sample.to(x.device).view(-1, *[1] * axes), slice(None), *indices)]  # (rows, *kernel, c)
    if any(map(any, border)) or window.transposed:
        found = found * inside[..., None]
    return found.movedim(-1, 1).flatten(1)


class Moments:
    """Running moments over batches. `groups` > 1: that many independent regressions side by side (grouped convolution)."""

    def __init__(self, groups: int = 1):
        self.groups = groups
        self.rows = 0
        self._settled = 0
        self._means: tuple[Tensor, ...] = ()
        self._products: tuple[Tensor, ...] = ()
        self._waiting: list[tuple[Tensor, Tensor | None]] = []
        self._away: tuple[Callable[[], Tensor], ...] | None = None
        self._rows_away: list[tuple[Callable[[], Tensor], Callable[[], Tensor] | None]] = []
        self._columns = 0

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Add rows.

        Args:
            x: inputs, (rows, groups * q).
            y: targets, (rows, groups * m); left out throughout where they are linear in x (see `centered_linear`).
        """
        if not len(x):
            return
        self._waiting.append((x.float(), None if y is None else y.float()))
        self.rows, self._columns = self.rows + len(x), x.shape[1]
        if sum(len(rows) for rows, _ in self._waiting) >= max(_ROWS, x.shape[1] // self.groups):
            self.settle()

    def settle(self) -> None:
        """Multiply the rows that wait, in one product: adding a wide matrix in float64 costs as much as making it."""
        if not self._waiting:
            return
        parts = [torch.cat([rows for rows, _ in self._waiting])]
        if targets := [rows for _, rows in self._waiting if rows is not None]:
            parts.append(torch.cat(targets))
        self._waiting = []
        count = len(parts[0])
        parts = [t.reshape(count, self.groups, -1).transpose(0, 1) for t in parts]
        means = [t.mean(1, keepdim=True) for t in parts]
        x, *targets = (t.sub_(mean) for t, mean in zip(parts, means, strict=True))  # in place: they are copies
        products: tuple[Tensor, ...] = (_gram(x),)
        for y in targets:
            products += (x.mT @ y, y.mT @ y)
        wide = torch.float32 if x.device.type == "mps" else torch.float64  # mps has no float64
        # The mean of some thousand float32 numbers is off by its own rounding.
        exact = [m[:, 0].to(wide) + t.mean(1).to(wide) for m, t in zip(means, (x, *targets), strict=True)]
        self._merge(count, exact, products, wide)

    def _merge(self, count: int, means: Sequence[Tensor], products: Sequence[Tensor], wide: torch.dtype) -> None:
        """Add the moments of other rows (module docstring)."""
        if not self._settled:
            self._means, self._products = tuple(means), tuple(t.to(wide) for t in products)
        else:
            both = self._settled + count
            apart = [other - mine for mine, other in zip(self._means, means, strict=True)]
            for total, part, (a, b) in zip(self._products, products, _pairs(apart), strict=True):
                total += part
                _add_outer(total, a, b, self._settled * count / both)
            self._means = tuple(mine + d * (count / both) for mine, d in zip(self._means, apart, strict=True))
        self._settled += count

    def join(self, ranks: Ranks, device: torch.device) -> None:
        """Put together what every process has added; afterwards all have the same. Some may have added nothing."""
        if ranks.count == 1:
            return
        # Rows that are few, and wait to be used as they are, stay rows.
        if not any(ranks.gathered(self._settled)):
            mine = [(x.cpu(), None if y is None else y.cpu()) for x, y in self._waiting]
            self._waiting = [rows for part in ranks.gathered(mine) for rows in part]
            self.rows = sum(len(x) for x, _ in self._waiting)
            self._columns = max((x.shape[1] for x, _ in self._waiting), default=0)
            return
        self.settle()
        known = ranks.gathered((self._settled, [(t.shape, t.dtype) for t in (*self._means, *self._products)]))
        shapes = next(shapes for rows, shapes in known if rows)
        if not self._settled:
            empty = tuple(torch.zeros(shape, dtype=kind, device=device) for shape, kind in shapes)
            # One mean and one product, or two and three.
            self._means, self._products = empty[: len(empty) // 2], empty[len(empty) // 2 :]
        counts = [rows for rows, _ in known]
        self.rows = sum(counts)
        means = tuple(ranks.summed(mine * (self._settled / self.rows)) for mine in self._means)
        apart = [mine - mean for mine, mean in zip(self._means, means, strict=True)]
        for total, (a, b) in zip(self._products, _pairs(apart), strict=True):
            _add_outer(total, a, b, self._settled)
        self._products, self._means, self._settled = tuple(map(ranks.summed, self._products)), means, self.rows

    def put_away(self, put: Callable[[Tensor], Callable[[], Tensor]]) -> None:
        """Nothing is added any more: products, or rows, go where `put` puts them, which gives the way to get them back."""
        if self.few:
            self._rows_away = [(put(x), None if y is None else put(y)) for x, y in self._waiting]
            self._waiting = []
        else:
            self.settle()
            self._away, self._products = tuple(put(t) for t in self._products), ()

    @property
    def few(self) -> bool:
        """Whether all rows are there as they came, fewer than the columns of one regression: they need less memory than sums."""
        return self.groups == 1 and not self._settled and 0 < self.rows < self._columns

    def parts(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Rows and targets that wait, as they came."""
        yield from self._waiting
        for x, y in self._rows_away:
            yield x(), None if y is None else y()

    @property
    def nbytes(self) -> int:
        """Memory of the sums."""
        self.settle()
        return sum(t.numel() * t.element_size() for t in (*self._means, *self._products))

    def centered(self) -> Centered:
        """Means and covariances, float64 on the CPU.

        Raises:
            ValueError: nothing was added, or no targets.
        """
        means, xx, *rest = self._covariances()
        if not rest:
            raise ValueError("moments without targets were asked for their targets; add them, or give the weights")
        return Centered(means[0], means[1], xx, *rest)

    def centered_linear(self, weight: Tensor) -> Centered:
        """The same for targets y = W x + b, which need no sums of their own: C_xy = C_xx W^T, C_yy = W C_xx W^T.

        Args:
            weight: (groups * m, q), the layer's own weights, flattened. The mean of y is without b.
        """
        (mean_x, *_), xx, *_ = self._covariances()
        w = weight.detach().cpu().double().reshape(self.groups, -1, xx.shape[1])
        xy = xx @ w.mT
        return Centered(mean_x, (w @ mean_x[:, :, None])[:, :, 0], xx, xy, w @ xy)

    def _covariances(self) -> tuple[Any, ...]:
        """The means, then the covariance of the inputs, that with the targets and that of the targets, if any."""
        # Rows that are fewer than their columns stay what is kept: their products are far larger, and quickly made again.
        settled = copy.copy(self) if self.few else self
        settled._waiting = [*self.parts()]
        settled.settle()
        products = settled._products if settled._away is None else tuple(get() for get in settled._away)
        if not products:
            raise ValueError("moments of no rows were asked for; add a batch first")
        return [t.cpu().double() for t in settled._means], *(t.cpu().double() / self.rows for t in products)


def _pairs(values: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """What the products are of: inputs with themselves, with the targets, and these with themselves."""
    x, *rest = values
    return [(x, x), *((x, y) for y in rest), *((y, y) for y in rest)]


def _add_outer(total: Tensor, a: Tensor, b: Tensor, factor: float) -> None:
    """Products of two vectors, in place: the matrices may be most of the memory."""
    total.baddbmm_(a[:, :, None], b[:, None, :], alpha=factor)


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
