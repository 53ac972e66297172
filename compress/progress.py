"""How work in progress is told: one kind of callback, from the command line down to the training loop."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float, str], None]
"""(what is being done, share done in [0, 1], a short live detail such as 'loss 0.41')."""


class Milestone(str):
    """What is being done, where that is one of the steps that a whole command has: `stage 3 of 6: remove`.

    Attributes:
        number: of the step, from 1.
        of: how many there are.
        name: of the step alone.
        left: seconds until the last one is expected to end; None where nothing is known yet.
    """

    number: int
    of: int
    name: str
    left: float | None

    def __new__(cls, name: str, number: int, of: int, left: float | None = None, prefix: str = "") -> Milestone:
        """`prefix` stands in front of the words, for one of several runs."""
        made = super().__new__(cls, f"{prefix}stage {number} of {of}: {name}")
        made.name, made.number, made.of, made.left = f"{prefix}{name}", number, of, left
        return made


def under(prefix: str, what: str) -> str:
    """The same under the name of what it belongs to."""
    if isinstance(what, Milestone):
        return Milestone(what.name, what.number, what.of, what.left, f"{prefix}: ")
    return f"{prefix}: {what}"


def about(seconds: float) -> str:
    """An estimate, with no more figures than one can be held to: 75 -> about 1 min."""
    if seconds < 50:
        return f"about {max(5, 5 * round(seconds / 5)):.0f} s"
    minutes = max(1, round(seconds / 60))
    return f"about {minutes} min" if minutes < 60 else f"about {minutes // 60} h {minutes % 60} min"


def duration(seconds: float) -> str:
    """75 -> 1 min 15 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def silent(what: str, share: float, detail: str = "") -> None:
    """Shows nothing."""
