"""Spatial entropy of feature maps: how unlike its neighbours a pixel is.

A map x (h, w) becomes G levels between its own smallest and largest value, q = floor(G (x - min) / (max - min)). Over all pairs
of pixels with offset (0, 1), and over those with (1, 0), with p the share of pairs and p0 the share of pixels:

    H_d  = - sum_{g,g'} p_d(g, g') log2 p_d(g, g')        H_0 = - sum_g p0(g) log2 p0(g)

    pairwise   mean over both offsets d of  (H_d - H_0) / H_0        0: a pixel tells its neighbour; 1: it tells nothing of it
    aura       - sum_{g,g'} a(g, g') log2 a(g, g')               bits; a the share of 4-neighbours, both offsets and ways pooled

A map that is constant has entropy 0 and is reported, because a search for low entropy would find dead maps first. Neither
changes when a map is scaled, shifted, mirrored or transposed. Entropies of small maps are too low (an 8 x 8 map has 56 pairs for
G^2 = 256 bins), so they compare between maps of one size only.

Source: Musat and Andonie, "Semiotic Aggregation in Deep Learning" (Entropy 22(12), 2020), and by the same authors arXiv
2312.04926 (aura) and 2312.04918. Our reading: the formula of the last, which steers a search, was not at hand, so both
definitions that they use elsewhere are here. The marginal entropy is that of all pixels; those of pairs leave out a border, so
that a relative entropy may pass its bounds by a little, and is cut off there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

LEVELS = 16
_FLAT = 1e-5  # range of a map over its largest value, below which it is rounding
_PART = 1 << 17  # bins counted at once on a CPU, and twice the pixels: they stay in its cache
_PART_ELSEWHERE = 1 << 25  # on other devices: 256 MB


@dataclass(frozen=True)
class Counts:
    """Of some maps.

    Attributes:
        found: (maps, 2 levels^2 + levels) int64: times that a level has another one to its right, then below it, then that it is
            there.
        levels: G.
        size: height and width of a map.
        constant: (maps,) bool.
    """

    found: Tensor
    levels: int
    size: tuple[int, int]
    constant: Tensor

    @property
    def pairs(self) -> Tensor:
        """(maps, 2, levels, levels): level of a pixel, level of its right (0) or lower (1) neighbour."""
        return self.found[:, : 2 * self.levels**2].unflatten(1, (2, self.levels, self.levels))

    @property
    def pixels(self) -> Tensor:
        """(maps, levels)."""
        return self.found[:, 2 * self.levels**2 :]

    @property
    def totals(self) -> tuple[int, int, int]:
        """Pairs to the right, pairs downwards, pixels of a map."""
        h, w = self.size
        return h * (w - 1), (h - 1) * w, h * w


@dataclass(frozen=True)
class Spatial:
    """Spatial entropy of a layer, summed over images and channels.

    Attributes:
        total: sum over the maps that vary, a float64 tensor of one number.
        varied: how many vary, an int64 tensor of one number.
        maps: how many there are.
    """

    total: Tensor
    varied: Tensor
    maps: int

    def __add__(self, other: Spatial) -> Spatial:
        return Spatial(self.total + other.total, self.varied + other.varied, self.maps + other.maps)

    @property
    def value(self) -> float:
        """Mean over the maps that vary; 0 where none does."""
        return float(self.total) / max(int(self.varied), 1)

    @property
    def constant(self) -> float:
        """Share of maps that are constant."""
        return 1 - int(self.varied) / max(self.maps, 1)

    def credited(self, credit: float) -> float:
        """Mean over all maps, each constant one at `credit` instead of 0."""
        return (float(self.total) + (self.maps - int(self.varied)) * credit) / max(self.maps, 1)


def spatial(maps: Tensor, definition: str = "pairwise", levels: int = LEVELS) -> Spatial:
    """Spatial entropy of one batch of a layer, left on its device.

    Args:
        maps: (n, c, h, w), at least 2 x 2 pixels.
        definition: "pairwise" or "aura".
        levels: G, 2 to 256.

    Raises:
        ValueError: maps without neighbours.
    """
    values, constant = entropies(maps, definition, levels)
    return Spatial(values.sum(dtype=torch.float64), (~constant).sum(), constant.numel())


def entropies(maps: Tensor, definition: str = "pairwise", levels: int = LEVELS) -> tuple[Tensor, Tensor]:
    """Entropy of each map, and whether it is constant: (n, c) each. Arguments as for `spatial`."""
    n, c, *space = maps.shape
    if len(space) != 2 or min(space) < 2:
        raise ValueError(f"maps are of {tuple(space)}, needed are two axes of 2 at least")
    most = _PART if maps.device.type == "cpu" else _PART_ELSEWHERE
    at_once = max(1, most // max(2 * levels * levels + levels, 2 * math.prod(space)))
    found = [count(part, levels) for part in maps.detach().reshape(n * c, *space).split(at_once)]
    values = torch.cat([DEFINITIONS[definition](counts) for counts in found])
    return values.view(n, c), torch.cat([counts.constant for counts in found]).view(n, c)


def count(maps: Tensor, levels: int = LEVELS) -> Counts:
    """Neighbouring levels of each map (maps, h, w), by one bincount."""
    m, h, w = maps.shape
    q, constant = quantised(maps, levels)
    right, down, square = m * h * (w - 1), m * (h - 1) * w, levels * levels
    each = 2 * square + levels
    index = torch.empty(right + down + m * h * w, dtype=torch.int32, device=maps.device)
    first = torch.arange(m, dtype=torch.int32, device=maps.device).view(m, 1, 1) * each
    here = torch.add(first, q, alpha=levels)
    torch.add(here[:, :, :-1], q[:, :, 1:], out=index[:right].view(m, h, w - 1))
    here += square
    torch.add(here[:, :-1], q[:, 1:], out=index[right : right + down].view(m, h - 1, w))
    torch.add(first + 2 * square, q, out=index[right + down :].view(m, h, w))
    found = torch.bincount(index, minlength=m * each).view(m, each)
    return Counts(found, levels, (h, w), constant)


def quantised(maps: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Levels of each map (maps, h, w), int32 from 0 to `levels` - 1, and whether it is constant, (maps,)."""
    flat = maps.float().flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    span = high - low
    constant = ~(span > _FLAT * torch.maximum(low.abs(), high.abs()))  # NaN counts as constant
    # A little less than G, so that the largest value falls into the last level.
    scale = torch.where(constant, 0.0, levels * (1 - 1e-6) / span.clamp_min(1e-38))
    shifted = (maps.float() - low.view(-1, 1, 1)).mul_(scale.view(-1, 1, 1))
    return shifted.nan_to_num_(0.0, 0.0, 0.0).int() if bool(constant.any()) else shifted.int(), constant


def pairwise(counts: Counts) -> Tensor:
    """Relative pairwise entropy, mean of both offsets, (maps,), in [0, 1]; 0 for constant maps."""
    parts = _n_log_n(counts.found, max(counts.totals)).split((counts.levels**2, counts.levels**2, counts.levels), 1)
    right, down, marginal = (math.log2(n) - part.sum(1) / n for n, part in zip(counts.totals, parts, strict=True))
    relative = [((joint - marginal) / marginal.clamp_min(1e-12)).clamp(0, 1) for joint in (right, down)]
    return torch.where(counts.constant, 0.0, (relative[0] + relative[1]) / 2)


def aura(counts: Counts) -> Tensor:
    """Aura entropy, bits, (maps,), at most 2 log2 G; 0 for constant maps."""
    pooled = counts.pairs.sum(1)
    both_ways = (pooled + pooled.mT).flatten(1)
    total = 2 * (counts.totals[0] + counts.totals[1])
    return torch.where(counts.constant, 0.0, math.log2(total) - _n_log_n(both_ways, total).sum(1) / total)


DEFINITIONS: dict[str, Callable[[Counts], Tensor]] = {"pairwise": pairwise, "aura": aura}


def _n_log_n(counts: Tensor, most: int) -> Tensor:
    """Of every count n: n log2 n. A table is several times faster than logarithms, for counts are small whole numbers."""
    return _table(most, counts.device).index_select(0, counts.view(-1)).view(counts.shape)


@functools.lru_cache(maxsize=64)
def _table(most: int, device: torch.device) -> Tensor:
    n = torch.arange(most + 1, dtype=torch.float32, device=device)
    return torch.special.xlogy(n, n) / math.log(2)
