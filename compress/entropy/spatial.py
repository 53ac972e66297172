"""Spatial entropy of feature maps: how unlike its neighbors a pixel is.

A map x (h, w) becomes G levels between its own smallest and largest value, q = floor(G (x - min) / (max - min)). Over all pairs
of pixels with offset (0, 1), and over those with (1, 0), with p the share of pairs and p0 the share of pixels:

    H_d  = - sum_{g,g'} p_d(g, g') log2 p_d(g, g')        H_0 = - sum_g p0(g) log2 p0(g)

    pairwise   mean over both offsets d of  (H_d - H_0) / H_0        0: a pixel tells its neighbor; 1: it tells nothing of it
    aura       - sum_{g,g'} a(g, g') log2 a(g, g')               bits; a the share of 4-neighbors, both offsets and ways pooled

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
_TINY = 1e-36  # a range below it cannot be divided by: 256 levels by it are at the end of float32
_PART = 1 << 18  # bins counted at once on a CPU, and twice the pixels: they stay in its cache
_PART_ELSEWHERE = 1 << 25  # on other devices: 256 MB


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
        ValueError: maps without neighbors.
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
    values: list[Tensor] = []
    flat: list[Tensor] = []
    for part in maps.detach().reshape(n * c, *space).split(at_once):
        q, constant = quantized(part, levels)
        values.append(torch.where(constant, 0.0, DEFINITIONS[definition](q, levels)))
        flat.append(constant)
    return torch.cat(values).view(n, c), torch.cat(flat).view(n, c)


def quantized(maps: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Levels of each map (maps, h, w), int32 from 0 to `levels` - 1, and whether it is constant, (maps,)."""
    flat = maps.float().flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    span = high - low
    varies = span > (_FLAT * torch.maximum(low.abs(), high.abs())).clamp_min(_TINY)
    constant = ~(varies & span.isfinite())  # NaN counts as constant
    # A little less than G, so that the largest value falls into the last level.
    scale = torch.where(constant, 0.0, levels * (1 - 1e-6) / span.clamp_min(1e-38))
    shifted = (maps.float() - low.view(-1, 1, 1)).mul_(scale.view(-1, 1, 1))
    return shifted.nan_to_num_(0.0, 0.0, 0.0).int() if bool(constant.any()) else shifted.int(), constant


def pairwise(q: Tensor, levels: int) -> Tensor:
    """Relative pairwise entropy of maps of levels (maps, h, w), int32: mean of both offsets, (maps,), in [0, 1]."""
    joint_right, joint_down, marginal = count(q, levels, apart=True).bits()
    of_right, of_down = (((joint - marginal) / marginal.clamp_min(1e-12)).clamp(0, 1) for joint in (joint_right, joint_down))
    return (of_right + of_down) / 2


def aura(q: Tensor, levels: int) -> Tensor:
    """Aura entropy of maps of levels (maps, h, w), int32: bits, (maps,), at most 2 log2 G."""
    counts = count(q, levels, apart=False)
    one_way = counts.found.unflatten(1, (levels, levels))
    total = 2 * sum(counts.sizes)
    return math.log2(total) - _n_log_n((one_way + one_way.mT).flatten(1), total).sum(1) / total


DEFINITIONS: dict[str, Callable[[Tensor, int], Tensor]] = {"pairwise": pairwise, "aura": aura}


@dataclass(frozen=True)
class Counts:
    """How often each pair of levels stands in each map.

    Attributes:
        found: (maps, bins) int64.
        codes: the bin of `found`, flattened, of every pair to the right, then downwards, then of every pixel where these count.
        sizes: how many of each kind a map has.
        widths: bins of each kind.
    """

    found: Tensor
    codes: Tensor
    sizes: tuple[int, ...]
    widths: tuple[int, ...]

    def bits(self) -> list[Tensor]:
        """Entropy of each kind, (maps,) each.

        The sum of n log2 n over bins is that of log2 n over entries: whichever are fewer are read.
        """
        maps, most = len(self.found), max(self.sizes)
        # Fewer entries than bins: logarithms are looked up for each entry instead of for each bin.
        if sum(self.sizes) >= self.found.shape[1]:
            sums = [part.sum(1) for part in _n_log_n(self.found, most).split(list(self.widths), 1)]
        else:
            logarithms = _table(most, self.found.device)[0].index_select(0, self.found.view(-1).index_select(0, self.codes))
            sums = [part.view(maps, -1).sum(1) for part in logarithms.split([maps * size for size in self.sizes])]
        return [math.log2(size) - total / size for size, total in zip(self.sizes, sums, strict=True)]


def count(q: Tensor, levels: int, apart: bool) -> Counts:
    """Neighboring levels of each map (maps, h, w), int32, by one bincount; every large tensor is written once.

    With `apart` the two offsets have bins of their own, and pixels are counted, too.
    """
    m, h, w = q.shape
    # Bins: pairs to the right, pairs downwards, pixels; `apart` keeps the three from each other.
    square, sizes = levels * levels, (h * (w - 1), (h - 1) * w, *((h * w,) if apart else ()))
    widths = (square, square, levels) if apart else (square,)
    bins = sum(widths)
    codes = torch.empty(m * sum(sizes), dtype=torch.int32, device=q.device)
    right, down, *pixels = codes.split([m * size for size in sizes])
    # Every map has bins of its own, so one bincount serves all.
    first = torch.arange(m, dtype=torch.int32, device=q.device).view(m, 1, 1) * bins
    here = torch.add(first, q, alpha=levels)
    torch.add(here[:, :, :-1], q[:, :, 1:], out=right.view(m, h, w - 1))
    # In place: `here` is not needed for the pairs to the right any longer.
    if apart:
        here += square
        torch.add(first + 2 * square, q, out=pixels[0].view(m, h, w))
    torch.add(here[:, :-1], q[:, 1:], out=down.view(m, h - 1, w))
    return Counts(torch.bincount(codes, minlength=m * bins).view(m, bins), codes, sizes, widths)


def _n_log_n(counts: Tensor, most: int) -> Tensor:
    """Of every count n: n log2 n. A table is several times faster than logarithms, for counts are small whole numbers."""
    return _table(most, counts.device)[1].index_select(0, counts.reshape(-1)).view(counts.shape)


@functools.lru_cache(maxsize=64)
def _table(most: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Log2 n, and n log2 n, of 0 to `most`; 0 for 0."""
    n = torch.arange(most + 1, dtype=torch.float32, device=device)
    logarithm = n.clamp_min(1).log2()  # the clamp makes log2 0 a 0
    return logarithm, n * logarithm
