"""One rule for `--max-drop`, wherever it is judged: kept, broken, or not to be told with so many samples.

    kept           the whole 95 % interval of the points lost is allowed
    broken         the whole interval is beyond what is allowed
    cannot tell    the limit lies inside; with samples enough for an interval that ends at it, it could be told.
                   Or one of both models only guesses: then the loss says nothing, however narrow its interval

The half width of an interval goes with one over the square root of the samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from compress.measure import points
from compress.measure.intervals import Interval
from compress.report.records import Quality
from compress.report.rules import Verdict, judged, telling
from compress.user.wording import many


@dataclass(frozen=True)
class Kept:
    """What can be said of a promise.

    Attributes:
        verdict: "pass", "fail" or "cannot tell".
        lost: points.
        interval: 95 % of it; None where there is but the figure, which then decides.
        samples: that it was counted on.
        enough: about how many samples would tell; None where it can be told, or none would.
        reason: why nothing can be told where that is not for the width of the interval.
    """

    verdict: Verdict
    lost: float
    interval: tuple[float, float] | None
    samples: int
    enough: int | None
    reason: str = ""

    def said(self, metric: str, limit: float) -> str:
        """Why nothing can be told."""
        if self.reason:
            return f"Whether --max-drop {limit:g} is kept cannot be told: {self.reason}."
        low, high = self.interval or (self.lost, self.lost)
        more = f" About {self.enough:,} would do." if self.enough else ""
        return (
            f"Whether --max-drop {limit:g} is kept cannot be told with {many(self.samples, 'sample')}: {self.lost:.2f} "
            f"[{low:.2f}, {high:.2f}] points of {metric} are lost.{more}"
        )


def _about(number: float) -> int:
    """To two digits, upwards: more would claim to know, and fewer would not do."""
    step = 10 ** max(math.floor(math.log10(number)) - 1, 0)
    return math.ceil(round(number / step, 6)) * step


def kept(dense: Quality, now: Quality, limit: float, chance: float | None) -> Kept:
    """Whether `now` loses at most `limit` points beside `dense`; `chance` is the quality of guessing."""
    lost = points.drop(dense, now)
    # Without an interval the figure decides.
    low, high = now.drop_ci95 or (lost, lost)
    by_interval = judged("max-drop", Interval(lost, low, high), limit, "")
    ruling = telling(by_interval, dense, now, chance)
    if ruling is not by_interval:
        return Kept(ruling.verdict, lost, now.drop_ci95, now.samples, None, ruling.reason)
    enough = None
    if ruling.verdict == "cannot tell" and not math.isclose(lost, limit, abs_tol=1e-6):
        half = high - lost if lost < limit else lost - low
        enough = _about(now.samples * (half / abs(limit - lost)) ** 2)
    return Kept(ruling.verdict, lost, now.drop_ci95, now.samples, enough)
