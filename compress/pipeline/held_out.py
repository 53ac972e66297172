"""What an answer loses on held-out images: the part of the data that results are chosen by, so that the test data is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from compress.measure import quality
from compress.measure.drop import drop_interval
from compress.measure.points import drop
from compress.pipeline.answers import counted
from compress.stage import Context


@dataclass(frozen=True)
class Lost:
    """Points of held-out quality lost, and the 95 % interval of that; the same number twice where there is none."""

    points: float
    low: float
    high: float


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
        points = drop(quality.finished(self.dense, self.metric), quality.finished(now, self.metric))
        return Lost(points, *(drop_interval(self.metric, self.dense, now, self.context.recipe.seed) or (points, points)))

    def _counted(self, answer: Callable[..., Any]) -> quality.Counted:
        context = self.context
        return context.team.call(counted, (answer, context.data.held_out, self.metric, context.device, context.dense.module))
