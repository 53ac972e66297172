"""Amounts as people type them: 6.5MB, 1.2G, 25%."""

from __future__ import annotations

import math
import re

BYTES = {"": 1.0, "B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12} | {
    f"{letter}IB": 1024.0**power for power, letter in enumerate("KMGT", 1)
}
"""Decimal units, as files are sold, and binary ones where they are named."""
TIMES = {"MS": 1.0, "S": 1e3, "US": 1e-3}
"""Milliseconds; a unit has to be named."""
COUNTS = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
SHARES = {"": 1.0, "%": 0.01}


def amount(text: str, units: dict[str, float]) -> float | None:
    """The number that is meant; None where the text is no positive number that a float holds or has another unit. Case does not
    matter.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+)\s*([a-z%]*)\s*", text, re.IGNORECASE)
    if found is None or found[2].upper() not in units:
        return None
    number = float(found[1]) * units[found[2].upper()]
    return number if math.isfinite(number) else None
