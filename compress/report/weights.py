"""Which notes of a run matter most: what was assumed and may be wrong, then how the result differs from what was asked for."""

from __future__ import annotations

from collections.abc import Iterable

MISSING = ("No model.compressed", "After stage '")
"""How notes begin that tell of something that is not there, or of another model that is."""
DIFFERS = ("Reached ", *MISSING)
"""How notes begin that tell where the result is not what was asked for."""
ASSUMED = ("There is no test part", "Normalization inferred", "The task is taken")
"""How notes begin that tell an assumption which somebody should look at."""
DECIDED = ("Depth:", "Order:", "Channel counts are")
"""How notes begin that tell what was decided by measuring."""
MOST = 6


def weight(note: str) -> int:
    """0 for what matters most; sorting by it leaves notes of equal weight in the order in which they were made."""
    kinds = (DIFFERS, ASSUMED, DECIDED)
    return next((number for number, kind in enumerate(kinds) if note.startswith(kind)), len(kinds))


def parted(notes: Iterable[str]) -> tuple[list[str], list[str]]:
    """Those to show where there is little room, and the others."""
    ordered = sorted(notes, key=weight)
    shown = [note for note in ordered if weight(note) < 3][:MOST]
    return shown, [note for note in ordered if note not in shown]
