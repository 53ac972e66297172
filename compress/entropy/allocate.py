"""One budget over all groups: the loss curves of `obs`, in one currency, against what the channels cost.

    minimize  sum_g loss_g(n_g)   subject to   cost(n) <= target,   lowest_g <= n_g <= C_g,  n_g a multiple of `align`

cost(n) = sum over tensors of constant * product of sizes, each size affine in n: parameters, MACs and bytes are all of that
form, and neighboring layers multiply. Greedy on the lower convex envelope of each curve: at every step the group whose next
step down costs least loss per unit saved at the present sizes gives it up. Then channels come back where they still fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

Axis = tuple[float, Mapping[int, float]]
"""Length of an axis: a part that stays, and per group that touches it a part per channel."""


@dataclass(frozen=True)
class CostModel:
    """cost(n) = fixed + sum_t scale_t * prod_d (base_td + sum_g per_channel_tdg * n_g).

    A group touches a few tensors of many, so that only the parts per channel that are not 0 are held.

    Attributes:
        fixed: cost that no choice changes.
        scale: (t,).
        base: (t, d).
        touched: tensor, axis and group of each part per channel, (3, parts), integers.
        per_channel: (parts,).
    """

    fixed: float
    scale: np.ndarray
    base: np.ndarray
    touched: np.ndarray
    per_channel: np.ndarray

    @classmethod
    def of(cls, fixed: float, tensors: Sequence[tuple[float, Sequence[Axis]]]) -> CostModel:
        """From each tensor's scale and axes."""
        # Biases have one axis, convolutions more: missing ones are 1 and change no product.
        base = np.ones((len(tensors), max([1, *(len(axes) for _, axes in tensors)])))
        parts: list[tuple[int, int, int]] = []
        per_channel: list[float] = []
        for t, (_, axes) in enumerate(tensors):
            for d, (length, groups) in enumerate(axes):
                base[t, d] = length
                parts += [(t, d, g) for g in groups]
                per_channel += groups.values()
        touched = np.array(parts, dtype=int).reshape(-1, 3).T
        return cls(fixed, np.array([scale for scale, _ in tensors]), base, touched, np.array(per_channel))

    def __call__(self, counts: np.ndarray) -> float:
        return self.fixed + float(self.scale @ self._sizes(counts).prod(1))

    def saved(self, counts: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """What each group saves by going down by its step, the others as they are, (groups,)."""
        sizes = self._sizes(counts)
        tensor, group, pair = self._pairs
        _, axis, by = self.touched
        # The product of sizes is not linear in the counts, so savings are taken at the present sizes, in full steps.
        after = sizes[tensor]
        np.subtract.at(after, (pair, axis), self.per_channel * steps[by])
        less = self.scale[tensor] * (sizes.prod(1)[tensor] - after.prod(1))
        return np.bincount(group, less, len(steps))

    def _sizes(self, counts: np.ndarray) -> np.ndarray:
        sizes = self.base.copy()
        tensor, axis, group = self.touched
        np.add.at(sizes, (tensor, axis), self.per_channel * counts[group])
        return sizes

    @cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tensor and group of each pair that touch, and the pair of each part: a group may touch two axes of one tensor."""
        pairs, pair = np.unique(self.touched[::2], axis=1, return_inverse=True)
        return pairs[0], pairs[1], pair.reshape(-1)


@dataclass(frozen=True)
class Allocation:
    """Channels per group and what they cost."""

    counts: tuple[int, ...]
    cost: float


EACH, MOST = 0.15, 1.5
"""By how much the logarithm of a loss's weight rises from one group to the next, and at most from the first to the last."""


_TRIES, _NEAR, _DEARLY = 8, 0.02, 2.0
"""How often one budget is split anew, how far below the target, as a share of it, that is worth while, and at how many times the
loss it is not."""


def by_depth(groups: int) -> np.ndarray:
    """What the losses of groups weigh beside the first one's, in the order of the network, (groups,).

    A loss is estimated with all layers behind as they are. In truth they are fitted anew, to what the dense model gives at the
    same place, and each repairs a part of what was lost before it: a loss near the end stays, one near the beginning mostly
    goes. The two figures are measured (benchmarks/allocation.py); no paper has them.
    """
    last = max(groups - 1, 1)
    return np.exp(min(EACH * last, MOST) * np.arange(groups) / last)


def choices(channels: int, align: int) -> list[int]:
    """Channel counts that may stay, ascending: multiples of `align`, and all of them."""
    # All of them, too: a group that loses nothing need not be a multiple.
    return sorted({*range(align, channels + 1, align), channels})


def lowest(channels: Sequence[int], align: int) -> np.ndarray:
    """Fewest channels per group."""
    return np.array([choices(c, align)[0] for c in channels], dtype=float)


def envelope(losses: Tensor, allowed: Sequence[int]) -> list[tuple[int, float]]:
    """Corners (n, loss) of the lower convex envelope over the allowed counts, ascending in n; loss never rises with n."""
    points: list[tuple[int, float]] = []
    # Losses of a sweep may rise by rounding; with more channels the loss cannot truly be higher.
    floor = np.inf
    monotone = []
    for n in allowed:
        floor = min(floor, float(losses[n]))
        monotone.append((n, floor))
    for n, value in monotone:
        # Corners above the line between their neighbors are no step that greedy would ever stop at.
        while len(points) > 1 and _above(points[-2], points[-1], (n, value)):
            points.pop()
        points.append((n, value))
    return points


def _above(a: tuple[int, float], b: tuple[int, float], c: tuple[int, float]) -> bool:
    # Cross products instead of slopes: no division where two counts are close.
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


def allocate(curves: Sequence[Tensor], cost: CostModel, target: float, align: int = 1) -> Allocation:
    """Split a budget.

    Args:
        curves: per group, estimated loss with n channels left, (channels + 1,).
        cost: of any choice of channel counts.
        target: the cost to come down to; not below what `lowest` costs.
        align: counts are multiples of it (or all channels).

    Raises:
        ValueError: the target is below the lowest cost.
    """
    channels = [len(curve) - 1 for curve in curves]
    allowed = [choices(c, align) for c in channels]
    if cost(lowest(channels, align)) > target:
        raise ValueError(f"a target of {target:g} is below {cost(lowest(channels, align)):g}, the cost of the fewest channels")
    slopes = [_slopes(curve, counts) for curve, counts in zip(curves, allowed, strict=True)]
    floor = np.zeros(len(allowed), dtype=int)
    found = list[tuple[float, Allocation]]()
    while len(found) < _TRIES:
        split, last = _down(allowed, slopes, floor, cost, target)
        if split.cost > target and found:
            break
        found.append((sum(float(curve[n]) for curve, n in zip(curves, split.counts, strict=True)), split))
        if last is None or split.cost >= target * (1 - _NEAR):
            break
        # One step of a group of large steps, such as heads, went far below the target: without it others give up a little each.
        floor[last] = 1 + allowed[last].index(split.counts[last])
    least = min(found, key=lambda one: one[0])
    # Whoever asks for a share compares what reaches it, unless that is bought dearly.
    near = [one for one in found if one[1].cost >= target * (1 - _NEAR) and one[0] <= _DEARLY * least[0]]
    return min(near or [least], key=lambda one: one[0])[1]


def _down(
    allowed: list[list[int]], slopes: list[np.ndarray], floor: np.ndarray, cost: CostModel, target: float
) -> tuple[Allocation, int | None]:
    """From all channels to the target, and the group that took the last step; no group below its floor, a number in `allowed`."""
    level = np.array([len(a) - 1 for a in allowed])
    counts = np.array([a[-1] for a in allowed], dtype=float)
    now, g = cost(counts), None
    while now > target:
        may = level > floor
        steps = np.array([a[i] - a[i - 1] if ok else 0 for a, i, ok in zip(allowed, level, may, strict=True)], dtype=float)
        price = np.array([s[i - 1] if ok else 0.0 for s, i, ok in zip(slopes, level, may, strict=True)]) * steps
        saved = cost.saved(counts, steps)
        # Nothing left to give, or nothing saved by it: never the cheapest.
        rate = np.where((steps > 0) & (saved > 0), price / np.maximum(saved, 1e-30), np.inf)
        g = int(rate.argmin())
        if not np.isfinite(rate[g]):
            break
        level[g] -= 1
        counts[g] -= steps[g]
        now = cost(counts)
    return _fill(allowed, slopes, level, counts, cost, target), g


def _slopes(losses: Tensor, allowed: Sequence[int]) -> np.ndarray:
    """Loss per channel of each step between neighboring allowed counts, on the convex envelope, (steps,)."""
    corners = envelope(losses, allowed)
    values = np.interp(allowed, [n for n, _ in corners], [value for _, value in corners])
    return -np.diff(values) / np.diff(allowed)


def _fill(
    allowed: list[list[int]], slopes: list[np.ndarray], level: np.ndarray, counts: np.ndarray, cost: CostModel, target: float
) -> Allocation:
    """Give channels back where they still fit: the last, large step may have gone well below the target."""
    while True:
        steps = np.array([a[i + 1] - a[i] if i + 1 < len(a) else 0 for a, i in zip(allowed, level, strict=True)], dtype=float)
        extra = -cost.saved(counts, -steps)
        fits = (steps > 0) & (extra <= target - cost(counts))
        if not fits.any():
            return Allocation(tuple(int(c) for c in counts), cost(counts))
        gain = np.array([s[i] if i < len(s) else 0.0 for s, i in zip(slopes, level, strict=True)]) * steps
        g = int(np.where(fits, gain / np.maximum(extra, 1e-30), -1.0).argmax())
        level[g] += 1
        counts[g] += steps[g]


def uniform(channels: Sequence[int], cost: CostModel, target: float, align: int = 1) -> Allocation:
    """The same share of every group, the largest that keeps to the target, and one step more in as many groups as still fit.

    Groups of one width step at the same share: without the last steps the result may lie far below the target.
    """

    def counts(share: float) -> np.ndarray:
        # 1e-9: a share such as 2 / 3 times 3 is not 2 in floating point.
        best = (max((n for n in a if n <= share * c + 1e-9), default=a[0]) for a, c in zip(allowed, channels, strict=True))
        return np.array(list(best), dtype=float)

    allowed = [choices(c, align) for c in channels]
    shares = sorted({n / c for a, c in zip(allowed, channels, strict=True) for n in a})
    fitting = [s for s in shares if cost(counts(s)) <= target]
    chosen = counts(fitting[-1] if fitting else shares[0])
    for g in np.argsort(chosen / np.array(channels), kind="stable"):
        more = chosen.copy()
        more[g] = next((n for n in allowed[g] if n > chosen[g]), chosen[g])
        chosen = more if cost(more) <= target else chosen
    return Allocation(tuple(int(c) for c in chosen), cost(chosen))


def tolerated(curves: Sequence[Tensor], tolerance: float, align: int = 1) -> tuple[int, ...]:
    """Fewest channels per group whose weighted error stays within a share of the targets' variance.

    The error that the full set of channels leaves (rounding, ridge) is not counted.
    """
    chosen = []
    for curve in curves:
        allowed = choices(len(curve) - 1, align)
        # The docstring's limit, above what is left with all channels.
        limit = float(curve[-1]) + tolerance * float(curve[0] - curve[-1])
        chosen.append(next(n for n in allowed if float(curve[n]) <= limit or n == len(curve) - 1))
    return tuple(chosen)
