"""What was found out about a model, kept for whoever asks again: statistics, loss curves, choices of channels.

A stage is asked more than once for one model: with other multiples of channels, at other targets. What does not depend on those
is computed once. It is kept as long as the one who asks wants it, since Gram matrices may be gigabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass
class Findings:
    """By model, and by whatever else they depend on."""

    _known: dict[tuple[int, Hashable], tuple[object, Any]] = field(default_factory=dict[tuple[int, Hashable], tuple[object, Any]])

    def of(self, model: object, key: Hashable, find: Callable[[], T]) -> T:
        """What `find` gives, once for each model (the very object) and key."""
        place = (id(model), key)
        if place not in self._known:
            self._known[place] = (model, find())  # the model beside it, so that no other one takes its id
        return self._known[place][1]


def once(findings: Findings | None, model: object, key: Hashable, find: Callable[[], T]) -> T:
    """From the findings, where there are any."""
    return find() if findings is None else findings.of(model, key, find)
