"""How work in progress is told: one kind of callback, from the command line down to the training loop."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float, str], None]
"""(what is being done, share done in [0, 1], a short live detail such as 'loss 0.41')."""


def silent(what: str, share: float, detail: str = "") -> None:
    """Shows nothing."""
