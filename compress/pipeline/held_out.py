"""What an answer loses on held-out images: the part of the data that results are chosen by, so that the test data is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from compress.errors import Infeasible
from compress.measure import quality
from compress.measure.drop import drop_interval
from compress.measure.points import drop
from compress.pipeline.answers import counted
from compress.report import sentences
from compress.report.records import Quality
from compress.stage import Context


@dataclass(frozen=True)
class Lost:
    """Points of held-out quality lost, and the 95 % interval of that; the same number twice where there is none.

    `reason` says why these points tell nothing; empty where they do.
    """

    points: float
    low: float
    high: float
    reason: str = ""

    def keeps(self, allowed: float) -> bool:
        """Whether no more is lost than is allowed, with a standard error to spare: of many, one is always lucky."""
        return not self.reason and self.points + (self.high - self.points) / 2 <= allowed


@dataclass
class HeldOut:
    """Counts against the dense model of the context, whose own answers are counted once."""

    context: Context
    metric: quality.Metric
    dense: quality.Counted = field(init=False)

    def __post_init__(self) -> None:
        self.dense = self._counted(self.context.dense.module)

    def lost(self, answer: Callable[..., Any]) -> Lost:
        """Of a module, or of anything else that answers like the model."""
        now = self._counted(answer)
        points = drop(self._quality(self.dense), self._quality(now))
        ends = drop_interval(self.metric, self.dense, now, self.context.recipe.seed) or (points, points)
        return Lost(points, *ends, self._untold(now) or "")

    def require_telling(self, what: str) -> None:
        """Refuse to choose by held-out images of which the dense model knows nothing.

        Raises:
            Infeasible: it only guesses there, or they are too few.
        """
        if reason := self._untold(self.dense):
            raise Infeasible(f"{what} on held-out images: {reason}. Correct that, or give a --target in the place of --max-drop.")

    def _untold(self, now: quality.Counted) -> str | None:
        dense = self._quality(self.dense)
        return sentences.untold(dense, self._quality(now), sentences.chance_of(dense, self.context.data.spec.classes))

    def _quality(self, counted: quality.Counted) -> Quality:
        return Quality(**asdict(quality.finished(counted, self.metric)))

    def _counted(self, answer: Callable[..., Any]) -> quality.Counted:
        context = self.context
        return context.team.call(counted, (answer, context.data.held_out, self.metric, context.device, context.dense.module))
