"""What a `--target` says: a unit and an amount."""

from __future__ import annotations

from compress.errors import BadInput
from compress.measure import meant
from compress.measure.units import BYTES, COUNTS, TIMES, amount

UNITS = ("params", "macs", "size", "activations", "weights", "latency", "memory")
_TARGETS = (
    "params=FRACTION, macs=FRACTION, size=6.5MB, latency=FRACTION or latency=5ms, memory=FRACTION or memory=20MB, "
    "activations=FRACTION or weights=FRACTION"
)
MS, PEAK = "ms", "peak bytes"
"""Units of what is measured, where no fraction of the dense model's was asked for."""


def parse_target(text: str) -> tuple[str, float]:
    """`params=0.25` -> ("params", 0.25); `size=6.5MB` -> ("size", 6.5e6), bytes; `latency=5ms` -> ("ms", 5.0);
    `memory=20MB` -> ("peak bytes", 2e7).

    Raises:
        BadInput: unknown unit, or a value that is not in the unit's range.
    """
    unit, _, value = text.partition("=")
    share, known = amount(value, {"": 1.0}), unit in UNITS and bool(value)
    if known and unit == "latency" and share is None and (ms := amount(value, TIMES)):
        return MS, ms
    if known and unit == "memory" and share is None and (peak := amount(value, BYTES)):
        return PEAK, peak
    found = amount(value, BYTES) if unit == "size" else share
    # Nobody has a model of so few bytes: a unit was forgotten.
    if unit in ("params", "macs") and (found is None or found > 1) and amount(value, COUNTS):
        needed = f"{unit} are a fraction of the dense model's, as in {unit}=0.5"
    elif not known or found is None or (unit == "size" and found < 1000 and share is not None):
        needed = f"needed is {_TARGETS}"
    elif 0 < found < (float("inf") if unit == "size" else 1):
        return unit, found
    else:
        needed = f"a fraction lies above 0 and below 1, as in {'macs' if unit == 'size' else unit}=0.5, and a size above 0 bytes"
    raise BadInput(f"The target is '{text}'; {needed}.{meant.target(text, UNITS)}")


def parse_memory(text: str) -> float:
    """Bytes of a text such as 4GB or 512MiB.

    Raises:
        BadInput: it is none, or has no unit that makes it more than a program takes.
    """
    found = amount(text, BYTES)
    if found is None or found < 1e6:
        raise BadInput(f"The memory is '{text}'; needed is a size such as 4GB or 512MB, at least 1MB.")
    return found
