"""Pictures as numbers: where every line, mark and bar of an inline SVG lies. Nothing here knows what it shows.

x(v) = left + (v - low) / (high - low) * inner width          the same for y, from the bottom up
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

WIDTH, HEIGHT = 760.0, 340.0
NARROW = 520.0
"""Of pictures that stand two in a row: the letters of both kinds are then of one size."""
LEFT, RIGHT, TOP, BOTTOM = 74.0, 20.0, 18.0, 52.0
MOST = 1e300
"""Farther out nothing is drawn to scale: a report may hold any number that JSON has."""
LOOKS = 6
"""Kinds of lines that the style sheet tells apart, by color and by dashes."""


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """A polyline; `look` is its color and dashes."""

    name: str
    points: str
    look: int


@dataclass(frozen=True)
class Mark:
    """A point; `label` stands near it, at the place that `labelled` found, `tip` is read aloud. Ends are those of intervals."""

    x: float
    y: float
    label: str
    tip: str
    look: int = 0
    x_ends: tuple[float, float] | None = None
    y_ends: tuple[float, float] | None = None
    label_x: float = 0.0
    label_y: float = 0.0


@dataclass(frozen=True)
class Bar:
    """A rectangle; `kind` is its class in the style sheet."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    tip: str


@dataclass(frozen=True)
class Plot:
    """One picture. `told` says the same in words."""

    title: str
    told: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...] = ()
    marks: tuple[Mark, ...] = ()
    bars: tuple[Bar, ...] = ()
    levels: tuple[Tick, ...] = ()
    height: float = HEIGHT
    width: float = WIDTH


@dataclass(frozen=True)
class Axis:
    """From values to places."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        value = min(max(value, -MOST), MOST)
        low, high, value = (math.log10(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 2)

    def ticks(self) -> tuple[Tick, ...]:
        """Round values inside."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            parts = (1, 2, 5) if len(decades) < 5 else (1,)
            found = [m * 10.0**d for d in decades for m in parts if self.low <= m * 10.0**d <= self.high]
        else:
            found = steps(self.low, self.high)
        # As many digits as tell two ticks apart.
        step = min((b - a for a, b in itertools.pairwise(found)), default=1.0)
        digits = max(3, math.ceil(math.log10(max(map(abs, found), default=1.0) / step + 1e-9)) + 1) if step > 0 else 6
        return tuple(Tick(self(value), short(value, digits)) for value in found)


def x_axis(values: Sequence[float], *, from_zero: bool = False, log: bool = False, width: float = WIDTH) -> Axis:
    """The lower axis around some values."""
    return Axis(*_range(values, from_zero, log, 0.06), LEFT, width - RIGHT, log)


def y_axis(values: Sequence[float], *, from_zero: bool = False) -> Axis:
    """The left axis; upwards on the page is down in the numbers."""
    return Axis(*_range(values, from_zero, False, 0.1), HEIGHT - BOTTOM, TOP)


def _range(values: Sequence[float], from_zero: bool, log: bool, pad: float) -> tuple[float, float]:
    low, high = (min(max(end, -MOST), MOST) for end in (min(values), max(values)))
    if log:
        return low / 1.15, high * 1.15
    if from_zero:
        return min(low, 0.0), (high if high > 0 else 1.0) * (1 + pad)
    # One value alone, or two that differ by rounding only, still need an axis of some length.
    room = max((high - low) * pad, abs(high) * 1e-9) if high > low else abs(high) * 0.05 or 1.0
    return low - room, high + room


def steps(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{step * i:.12g}") for i in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float, digits: int = 4) -> str:
    """1500000 -> 1.5M."""
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.{digits}g}{unit}"
    return f"{value:.{digits}g}"


def line(name: str, xs: Sequence[float], ys: Sequence[float], x: Axis, y: Axis, look: int) -> Line:
    """A line through points."""
    return Line(name, " ".join(f"{x(a):g},{y(b):g}" for a, b in zip(xs, ys, strict=True)), look % LOOKS)


def columns(
    before: Sequence[float], after: Sequence[float] | None, tips: Sequence[str], y: Axis, kinds: Sequence[str] | None = None
) -> tuple[Bar, ...]:
    """A column for each value, in front of it that of afterwards."""
    step = (WIDTH - LEFT - RIGHT) / max(len(before), 1)
    wide, bottom = min(step * 0.8, 46.0), y(0.0)
    # Columns that are a few pixels wide leave no room for one inside another.
    inside = 0.6 if wide > 8 else 1.0
    bars: list[Bar] = []
    for i, value in enumerate(before):
        left = round(LEFT + step * (i + 0.5) - wide / 2, 2)
        kind = "before" if after is not None else (kinds[i] if kinds else "after")
        bars.append(Bar(left, y(value), round(wide, 2), round(bottom - y(value), 2), kind, tips[i]))
        if after is not None:
            kind = kinds[i] if kinds else "after"
            inner = round(wide * inside, 2)
            at = round(left + (wide - inner) / 2, 2)
            bars.append(Bar(at, y(after[i]), inner, round(bottom - y(after[i]), 2), kind, tips[i]))
    return tuple(bars)


def column_ticks(numbers: Sequence[int], most: int = 12) -> tuple[Tick, ...]:
    """Round numbers of columns, so many that they do not run into each other."""
    step = (WIDTH - LEFT - RIGHT) / max(len(numbers), 1)
    every = next((n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500) if len(numbers) <= n * most), 1000)
    return tuple(Tick(round(LEFT + step * (i + 0.5), 2), str(n)) for i, n in enumerate(numbers) if n % every == 0 or every == 1)


_AROUND = tuple(
    (round(r * math.cos(a), 1), round(r * math.sin(a), 1)) for r in (15, 24, 34) for a in (-2.2, -0.9, 0.9, 2.2, 0, 3.14)
)


def labelled(marks: Sequence[Mark], width: float = WIDTH) -> tuple[Mark, ...]:
    """Each label at the nearest place around its mark where no mark and no earlier label is."""
    taken = [(mark.x, mark.y, 7.0) for mark in marks]
    placed: list[Mark] = []
    for mark in marks:
        half = 4.0 * len(mark.label) + 2
        spots = [(mark.x + dx + math.copysign(half - 6, dx), mark.y + dy) for dx, dy in _AROUND]
        inside = [s for s in spots if LEFT + half < s[0] < width - RIGHT - half and TOP < s[1] < HEIGHT - BOTTOM - 6] or spots
        free = [s for s in inside if all(abs(s[0] - x) > half + r - 2 or abs(s[1] - y) > 12 for x, y, r in taken)]
        at = (free or inside)[0]
        taken.append((*at, half))
        placed.append(replace(mark, label_x=round(at[0], 1), label_y=round(at[1], 1)))
    return tuple(placed)
