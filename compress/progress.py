"""How work in progress is told: one kind of callback, from the command line down to the training loop."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float, str], None]
"""(what is being done, share done in [0, 1], a short live detail such as 'loss 0.41')."""


def duration(seconds: float) -> str:
    """75 -> 1 min 15 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def silent(what: str, share: float, detail: str = "") -> None:
    """Shows nothing."""
