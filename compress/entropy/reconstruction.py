"""How well a linear decoder gets the input back from an activation, and how far what it gives is from the input.

    decoder        x^ = W a + b: ridge regression from one pass over the images, the same W at every position of a map,
                   held within the range that the inputs have
    distance       D = sum p log2 (p / q)    bits;  p, q: the input and its reconstruction as distributions over their entries

A sample becomes a distribution by taking its minimum away, adding a gray level, and dividing by the sum.

A map whose positions are coarser than those of the input gives a block of the input at each position, from the map's values in a
window around it. Where its size does not divide that of the input, the map is stretched, or laid into the middle (as convolutions
without padding leave it), whichever decodes better.

Source: Thurn, Jefferson, Erdmenger, "Opening the Black Box: predicting the trainability of deep neural networks with
reconstruction entropy", arXiv:2406.12916, and the authors' code, from which the distance is taken. Departs from them: their
decoders are cascades of single layers with tanh, trained by Adam for one epoch; ours go to the input in one step and are solved
in closed form, so that neither a learning rate nor an initialization decides, and cut off where theirs are bent; the gray level
is 1/255 of the sample's range where theirs is 1e-12, at which a single darkest entry decides.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from compress.entropy.moments import Moments, Window, entries, patches, sample
from compress.entropy.ridge import Fit, ridge

GREY = 1 / 255
LARGEST = 32  # entries per axis of the input that is decoded; larger ones are averaged
COLUMNS = 1024  # of a decoder, about
_ROWS = 16  # per column, at most
_POOLS: tuple[Callable[..., Tensor], ...] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
_CONVOLUTIONS: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)
_MODES = ("linear", "bilinear", "trilinear")


def relative_entropy(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Distance of each reconstruction from its original, (n,), bits, 0 where they are equal up to brightness and contrast.

    Args:
        original: (n, ...).
        reconstruction: of the same shape.
    """
    p, q = _distribution(original), _distribution(reconstruction)
    return (p * (p / q).log2()).sum(1)


def _distribution(x: Tensor) -> Tensor:
    flat = x.flatten(1).double()
    flat = flat - flat.amin(1, keepdim=True)
    flat = flat + GREY * flat.amax(1, keepdim=True).clamp_min(1e-12)  # clamp: a sample of one gray level has a range of 0
    return flat / flat.sum(1, keepdim=True)


def shrunk(x: Tensor) -> Tensor:
    """An input (n, c, *space) with at most `LARGEST` entries per axis."""
    axes = x.ndim - 2
    if not 1 <= axes <= 3 or max(x.shape[2:]) <= LARGEST:
        return x
    return _POOLS[axes - 1](x, tuple(min(n, LARGEST) for n in x.shape[2:]))


@dataclass(frozen=True)
class Geometry:
    """How an activation lies over the input.

    Attributes:
        grid: positions per axis; nothing at all where the activation has no space, or none that the input shares.
        window: positions that a block of the input is decoded from, per axis.
        shape: of the input, (c, *space).
        stretched: whether a map that is smaller than the grid is stretched over it, or laid into its middle.
    """

    grid: tuple[int, ...]
    window: int
    shape: tuple[int, ...]
    stretched: bool = True

    @property
    def blocks(self) -> tuple[int, ...]:
        """Entries of the input per position and axis."""
        return tuple(n // g for n, g in zip(self.shape[1:], self.grid, strict=True))


def geometry(value: Tensor, target: Tensor) -> Geometry:
    """How activations (n, c, *space), or (n, c), are decoded into `target` (n, c, *space); more samples choose better."""
    shape = tuple(target.shape[1:])
    if value.ndim != target.ndim or value.ndim < 3:
        return Geometry((), 1, shape)
    # The coarsest grid that the map fits into and that divides the input.
    grid = tuple(
        next(d for d in range(min(a, n), n + 1) if n % d == 0) for a, n in zip(value.shape[2:], target.shape[2:], strict=True)
    )
    room = COLUMNS / value.shape[1]
    window = next((k for k in (5, 3) if k ** len(grid) <= room), 1)
    how = Geometry(grid, window if max(grid) > 1 else 1, shape)
    if all(a >= g for a, g in zip(value.shape[2:], grid, strict=True)):
        return how
    errors: dict[Geometry, float] = {}
    # Which of the two is right depends on padding in the network, so both are tried on this batch.
    for one in (how, replace(how, stretched=False)):
        decoder = Decoder(one, len(value), 0)
        decoder.add(value, target)
        errors[one] = decoder.fit.error
    return min(errors, key=errors.__getitem__)


class Decoder:
    """The regression of the input on one activation, batch by batch, and what it gives."""

    def __init__(self, how: Geometry, images: int, seed: int):
        self.how, self.images, self.moments = how, images, Moments()
        self.generator = torch.Generator().manual_seed(seed)
        self._range = (math.inf, -math.inf)

    def add(self, value: Tensor, target: Tensor) -> None:
        """Learn from a batch of activations and the inputs behind them."""
        # A linear decoder may leave the range of inputs; what it gives is cut to what was seen.
        self._range = (min(self._range[0], float(target.min())), max(self._range[1], float(target.max())))
        if not self.how.grid:
            self.moments.add(_flat(value), target.flatten(1))
            return
        value, blocks = self._laid(value), self._cut(target)
        columns = value.shape[1] * self.how.window ** len(self.how.grid)
        # Each batch brings its part, so that all of them together hold enough rows.
        rows = max(_ROWS * columns, 20_000) * len(value) / max(self.images, 1)
        at = sample((len(value), *self.how.grid), max(1, round(rows)), self.generator)
        self.moments.add(patches(value, self._window(), at), entries(blocks, at))

    def __call__(self, value: Tensor) -> Tensor:
        """The input of the model as the decoder has it, (n, *shape)."""
        weight, bias = self.fit.weight.to(value.device), self.fit.bias.to(value.device)
        if not self.how.grid:
            return F.linear(_flat(value), weight, bias).unflatten(1, self.how.shape).clamp(*self._range)
        value, axes = self._laid(value), len(self.how.grid)
        weight = weight.view(len(weight), value.shape[1], *[self.how.window] * axes)
        return self._joined(_CONVOLUTIONS[axes - 1](value, weight, bias, padding=self.how.window // 2)).clamp(*self._range)

    @functools.cached_property
    def fit(self) -> Fit:
        """The regression on what was added so far; nothing can be added behind it."""
        return ridge(self.moments)

    def _window(self) -> Window:
        axes, k = len(self.how.grid), self.how.window
        return Window((k,) * axes, (1,) * axes, (1,) * axes, ((k // 2, k // 2),) * axes)

    def _laid(self, value: Tensor) -> Tensor:
        """The activation on the grid."""
        fewer = tuple(min(a, g) for a, g in zip(value.shape[2:], self.how.grid, strict=True))
        axes, value = len(self.how.grid), value.float()
        if fewer != tuple(value.shape[2:]):
            value = _POOLS[axes - 1](value, fewer)
        if fewer == self.how.grid:
            return value
        if self.how.stretched:
            return F.interpolate(value, self.how.grid, mode=_MODES[axes - 1])
        free = [g - a for g, a in zip(self.how.grid, fewer, strict=True)]
        return F.pad(value, [side for n in reversed(free) for side in (n // 2, n - n // 2)])

    def _cut(self, target: Tensor) -> Tensor:
        """(n, c, *space) -> (n, c * entries of a block, *grid)."""
        axes, pairs = len(self.how.grid), zip(self.how.grid, self.how.blocks, strict=True)
        split = target.reshape(*target.shape[:2], *(n for pair in pairs for n in pair))
        inside = [3 + 2 * d for d in range(axes)]
        return split.permute(0, 1, *inside, *(d - 1 for d in inside)).flatten(1, 1 + axes)

    def _joined(self, blocks: Tensor) -> Tensor:
        """The inverse of `_cut`."""
        axes = len(self.how.grid)
        split = blocks.unflatten(1, (self.how.shape[0], *self.how.blocks))
        order = [d for axis in range(axes) for d in (2 + axes + axis, 2 + axis)]
        return split.permute(0, 1, *order).reshape(len(blocks), *self.how.shape)


def _flat(value: Tensor) -> Tensor:
    """(n, columns): everything, or means over positions where that would be too much."""
    if value.ndim < 3 or math.prod(value.shape[1:]) <= COLUMNS:
        return value.float().flatten(1)
    return value.float().flatten(2).mean(2)


def on_grid(value: Tensor, axis: int, space: Sequence[int]) -> Tensor:
    """An activation with its channels on axis 1, and tokens in rows and columns where the input has these.

    Args:
        value: (n, ...) with channels on `axis`; tokens (n, t, c) may begin with some that belong to no place.
        axis: 1 or -1; of tokens it is the last one, whatever is said.
        space: of the input.
    """
    if value.ndim == 3 and len(space) == 2:
        # Tokens of a class lie in front: the last side * side are those of the grid.
        side = math.isqrt(value.shape[1])
        return value[:, value.shape[1] - side * side :].transpose(1, 2).unflatten(2, (side, side))
    return value if value.ndim < 3 else value.movedim(axis, 1)
