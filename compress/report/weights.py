"""Which notes of a run matter most: what was assumed and may be wrong, then how the result differs from what was asked for."""

from __future__ import annotations

from collections.abc import Iterable

ASSUMED = (
    "There is no test part",
    "Normalization inferred",
    "The task is taken",
    "No labels",
    "Without a target",
)
"""How notes begin that tell an assumption which somebody should look at."""
DIFFERS = ("Reached", "No model.compressed", "After stage '", "Linearize:", "Rounding", "The target")
"""How notes begin that tell where the result is not what was asked for."""
DECISIVE = (*DIFFERS, *ASSUMED)
MOST = 6


def weight(note: str) -> int:
    """0 for what matters most; sorting by it leaves notes of equal weight in the order in which they were made."""
    return 0 if note.startswith(DIFFERS) else 1 if note.startswith(ASSUMED) else 2


def parted(notes: Iterable[str]) -> tuple[list[str], list[str]]:
    """Those to show where there is little room, and the others."""
    ordered = sorted(notes, key=weight)
    shown = [note for note in ordered if note.startswith(DECISIVE)][:MOST]
    return shown, [note for note in ordered if note not in shown]
