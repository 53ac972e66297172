"""Intervals of figures, and of their differences and ratios.

    d = a - b:   low = d - sqrt((a - a_low)^2 + (b_high - b)^2),   high = d + sqrt((a_high - a)^2 + (b - b_low)^2)

for independent a and b (MOVER: Zou and Donner, Statistics in Medicine 27, 2008, equations 6 and 7; for two shares with Wilson's
intervals it is method 10 of Newcombe, Statistics in Medicine 17, 1998). A ratio is the same on logarithms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Z95 = 1.959964


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval; both ends are the figure where nothing is uncertain about it."""

    value: float
    low: float
    high: float

    @staticmethod
    def exact(value: float) -> Interval:
        """What was counted, not sampled."""
        return Interval(value, value, value)

    def times(self, factor: float) -> Interval:
        """In another unit; a negative factor turns it round."""
        ends = sorted((self.low * factor, self.high * factor))
        return Interval(self.value * factor, ends[0], ends[1])


def difference(a: Interval, b: Interval) -> Interval:
    """A - b of independent figures (module docstring)."""
    value = a.value - b.value
    low = math.hypot(a.value - a.low, b.high - b.value)
    high = math.hypot(a.high - a.value, b.value - b.low)
    return Interval(value, value - low, value + high)


def paired(a: Interval, b: Interval) -> Interval:
    """A - b of two shares of the same samples, of which none counts for both: they move against each other.

    The same with the correlation r = -sqrt(a b / ((1 - a) (1 - b))) of two such shares (Zou and Donner, section 2).
    """
    value = a.value - b.value
    r = -math.sqrt(a.value * b.value / ((1 - a.value) * (1 - b.value))) if max(a.value, b.value) < 1 else 0.0

    def half(one: float, other: float) -> float:
        return math.sqrt(one * one - 2 * r * one * other + other * other)

    return Interval(value, value - half(a.value - a.low, b.high - b.value), value + half(a.high - a.value, b.value - b.low))


def ratio(a: Interval, b: Interval) -> Interval:
    """A / b of independent positive figures."""
    logs = difference(*(Interval(math.log(x.value), math.log(x.low), math.log(x.high)) for x in (a, b)))
    return Interval(math.exp(logs.value), math.exp(logs.low), math.exp(logs.high))


def share(value: float, samples: int) -> Interval:
    """A share of so many samples, with Wilson's interval (Journal of the American Statistical Association 22, 1927)."""
    n, z = samples, Z95
    center = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    # The ends of 0 and 1 are exact, which rounding need not hit.
    return Interval(value, max(min(center - half, value), 0.0), min(max(center + half, value), 1.0))


def beside_one(value: float) -> str:
    """A ratio with two digits behind the point, or as many as tell it from 1: what is below must not read as if it held it."""
    texts = (f"{value:.{digits}f}" for digits in (2, 3, 4, 5))
    return next((text for text in texts if float(text) != 1), f"{value:.2f}")
