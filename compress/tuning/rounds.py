"""Which trial is done next: all are looked at, and those that look best are carried out, a few after every ten looks.

    round r    looks at trials 10 r ... 10 r + 9     channels removed and refitted, nothing trained: cheap
               then as many runs as its share        the usual recipes first, then the front of all looks so far, spread out
    the end    what was not carried out is told so

A round begins when the one before it is over, and which trials are carried out depends on looks alone. So it is the same for one
worker and for many, and in whatever order they finish. Successive halving (Jamieson and Talwalkar, AISTATS 2016) of two stages,
over a front in the place of one figure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

ROUND = 10
SHARE, LEAST = 5, 6
"""One of so many trials is carried out, and no fewer than so many: with few trials all of them."""
LOOK, LOOK_LEFT = "look", "look_left"
"""What a trial has after its look: points lost, and the share left."""


class Does(Enum):
    """What is to be done with a trial."""

    LOOK = "look at it"
    RUN = "carry it out"
    LEAVE = "tell that it is not carried out"


def usual_runs(trials: int) -> int:
    """How many of so many trials are carried out where nobody says it."""
    return min(trials, max(LEAST, math.ceil(trials / SHARE)))


def number(trial: FrozenTrial) -> int:
    """Its number when it was put into the queue first: one that a dead worker left goes back under another."""
    return trial.system_attrs.get("retry_history", [trial.number])[0]


def looked(trial: FrozenTrial) -> bool:
    """Whether it was looked at: what is left is written down last."""
    return LOOK_LEFT in trial.user_attrs


def before(trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Those of earlier rounds, of which all are over that are not left for the end: what values may be drawn by."""
    return [one for one in latest(trials) if number(one) // ROUND < number(trial) // ROUND]


def latest(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Each trial once, as it was taken up last, by number."""
    last = {number(one): one for one in trials}
    return [last[key] for key in sorted(last)]


@dataclass(frozen=True)
class Rounds:
    """Of one search.

    Attributes:
        trials: how many there are.
        runs: how many of them are carried out.
        usual: how many of the first ones are carried out in any case.
    """

    trials: int
    runs: int
    usual: int

    def next(self, every: Sequence[FrozenTrial]) -> tuple[FrozenTrial, Does] | None:
        """What is to be done now; None where others have to finish first, or all is done."""
        trials = latest(every)
        for stop in range(ROUND, self.trials + ROUND, ROUND):
            stop = min(stop, self.trials)
            unseen = [one for one in trials[:stop] if not one.state.is_finished() and not looked(one)]
            if unseen:
                return self._first(unseen, Does.LOOK)
            chosen = self.chosen(self._looks(trials[:stop]), stop)
            open_ = [one for one in trials[:stop] if number(one) in chosen and not one.state.is_finished()]
            if open_:
                return self._first(open_, Does.RUN)
        return self._first([one for one in trials if not one.state.is_finished()], Does.LEAVE)

    def chosen(self, looks: Mapping[int, tuple[float, float]], stop: int) -> set[int]:
        """Numbers of the trials that are carried out when the first `stop` were looked at.

        Args:
            looks: points lost and share left, by number; a trial that cannot be carried out is not among them.
            stop: the end of a round.
        """
        chosen: list[int] = []
        for end in [*range(ROUND, stop, ROUND), stop]:
            seen = {one: figures for one, figures in looks.items() if one < end}
            for _ in range(math.ceil(self.runs * end / self.trials) - len(chosen)):
                rest = {one: figures for one, figures in seen.items() if one not in chosen}
                if not rest:
                    break
                usual = [one for one in rest if one < self.usual]
                best = {one: rest[one] for one in front(seen) if one in rest} or front(rest)
                chosen.append(min(usual) if usual else _furthest(best, [seen[one] for one in chosen]))
        return set(chosen)

    @staticmethod
    def _first(trials: Sequence[FrozenTrial], does: Does) -> tuple[FrozenTrial, Does] | None:
        return next(((one, does) for one in trials if one.state.name == "WAITING"), None)

    @staticmethod
    def _looks(trials: Sequence[FrozenTrial]) -> dict[int, tuple[float, float]]:
        return {number(t): (t.user_attrs[LOOK], t.user_attrs[LOOK_LEFT]) for t in trials if looked(t)}


def front(looks: Mapping[int, tuple[float, float]]) -> dict[int, tuple[float, float]]:
    """Those that no other one beats: loses and leaves as little, and less of one of them."""
    return {
        one: mine
        for one, mine in looks.items()
        if not any(other != mine and other[0] <= mine[0] and other[1] <= mine[1] for other in looks.values())
    }


def _furthest(looks: Mapping[int, tuple[float, float]], chosen: Sequence[tuple[float, float]]) -> int:
    """The one whose share left is furthest, as a factor, from those that are chosen already; of several, the first."""

    def gap(one: int) -> float:
        mine = math.log(max(looks[one][1], 1e-9))
        return min((abs(mine - math.log(max(left, 1e-9))) for _, left in chosen), default=mine)

    return max(sorted(looks), key=gap)
