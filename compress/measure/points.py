"""Points of quality: the one formula by which a model is called worse. Needs no torch."""

from __future__ import annotations

from typing import Protocol


class Valued(Protocol):
    """A measured quality, as this process or a report has it."""

    @property
    def value(self) -> float:
        """In the unit of the metric."""
        ...

    @property
    def higher_is_better(self) -> bool:
        """False for errors."""
        ...

    @property
    def points(self) -> float:
        """Points per unit: 100 for shares, 1 where the metric has a unit of its own."""
        ...


def fallen(before: float, after: float, higher_is_better: bool) -> float:
    """By how much a value got worse, in its unit; below 0 where it got better."""
    return before - after if higher_is_better else after - before


def drop(dense: Valued, now: Valued) -> float:
    """Points by which `now` is worse: 0.5 is half a percentage point of a share; below 0 where it is better."""
    return fallen(dense.value, now.value, now.higher_is_better) * now.points
