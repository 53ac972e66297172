"""One rule for `--max-drop`, wherever it is judged: kept, broken, or not to be told with so many samples.

    kept           the whole 95 % interval of the points lost is allowed
    broken         the whole interval is beyond what is allowed
    cannot tell    the limit lies inside; with samples enough for an interval that ends at it, it could be told

The half width of an interval goes with one over the square root of the samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from compress.measure import points
from compress.report.intervals import Interval
from compress.report.records import Quality
from compress.report.rules import Verdict, judged


@dataclass(frozen=True)
class Kept:
    """What can be said of a promise.

    Attributes:
        verdict: "pass", "fail" or "cannot tell".
        lost: points.
        interval: 95 % of it; None where there is but the figure, which then decides.
        samples: that it was counted on.
        enough: about how many samples would tell; None where it can be told, or none would.
    """

    verdict: Verdict
    lost: float
    interval: tuple[float, float] | None
    samples: int
    enough: int | None

    def said(self, metric: str, limit: float) -> str:
        """Why nothing can be told."""
        low, high = self.interval or (self.lost, self.lost)
        more = f" About {self.enough:,} would do." if self.enough else ""
        return (
            f"Whether --max-drop {limit:g} is kept cannot be told with {self.samples:,} samples: {self.lost:.2f} "
            f"[{low:.2f}, {high:.2f}] points of {metric} are lost.{more}"
        )


def _about(number: float) -> int:
    """To two digits: more would claim to know."""
    digits = math.floor(math.log10(number)) - 1
    return int(round(number, -digits)) if digits > 0 else math.ceil(number)


def kept(dense: Quality, now: Quality, limit: float) -> Kept:
    """Whether `now` loses at most `limit` points beside `dense`."""
    lost = points.drop(dense, now)
    if now.drop_ci95 is None:
        return Kept("pass" if lost <= limit else "fail", lost, None, now.samples, None)
    low, high = now.drop_ci95
    verdict = judged("max-drop", Interval(lost, low, high), limit, "").verdict
    enough = None
    if verdict == "cannot tell" and not math.isclose(lost, limit, abs_tol=1e-6):
        half = high - lost if lost < limit else lost - low
        enough = _about(now.samples * (half / abs(limit - lost)) ** 2)
    return Kept(verdict, lost, now.drop_ci95, now.samples, enough)
