"""`compress methods`: what `--method` can be. A static list, read without torch."""

from __future__ import annotations

from dataclasses import dataclass

from compress.method_table import METHODS


@dataclass(frozen=True)
class MethodRow:
    """A method: its stages, in order (a run leaves out those that its settings do not ask for), and what to know of it."""

    method: str
    stages: tuple[str, ...]
    what: str
    source: str
    needs: str
    costs: str


def methods() -> list[MethodRow]:
    """What `method` can be."""
    return [
        MethodRow(name, tuple(step.name for step in one.steps), one.what, one.source, one.needs, one.costs)
        for name, one in METHODS.items()
    ]
