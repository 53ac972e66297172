"""Did training harm the model? Asked where the held-out images were training images of the dense model.

There the state before training has an advantage: what is left of the dense model's memory of these images and their labels, which
training on others fades. Its quality on them is some points above that on new images, and training that helps looks like harm.
How often it *agrees with the dense model* has hardly any such advantage: what both remember is on both sides. So training is
taken back where both say harm: agreement is lower, and quality is no higher. Neither needs to be beyond its noise, since few
held-out images tell little, and the start wins where nothing speaks for the training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from compress.measure import quality
from compress.measure.drop import SLICES, drop_interval
from compress.measure.quality import CLASSES, METRICS, Counted

AGREEMENT = METRICS["agreement"]
GOOD = 0.7
"""Of the samples a start has to agree in with the dense model to count as good."""


@dataclass(frozen=True)
class Start:
    """Agreement with the dense model before training, and how it is counted."""

    counted: Counted
    count: Callable[[], Counted]

    @property
    def good(self) -> bool:
        """Not far from the dense model."""
        return quality.finished(self.counted, AGREEMENT).value >= GOOD

    def harmed(self, before: quality.Quality, after: quality.Quality) -> str | None:
        """What says so, where the state that is measured now is worse than the start; None where it is not, or nobody can tell.

        Args:
            before: held-out quality of the start.
            after: held-out quality of the state that is counted now.
        """
        if quality.better(after, before):
            return None
        now = self.count()
        lost = 100 * (quality.finished(self.counted, AGREEMENT).value - quality.finished(now, AGREEMENT).value)
        if lost <= 0:
            return None
        interval = drop_interval(AGREEMENT, self.counted, now)
        told = f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else ""
        return (
            f"Training was taken back: on held-out images the model then agreed with the dense one in {lost:.2f} points fewer"
            f"{told}, and {after.metric} was no higher."
        )


def start(count: Callable[[quality.Metric, int], Counted], task: str, taught: bool) -> Start | None:
    """The state before training; None where there is no dense model to agree with, or outputs are no classes.

    Args:
        count: counts a metric on the held-out data, in so many slices of a batch, of the model as it is then.
        task: of the data.
        taught: whether there is a dense model.
    """
    if not taught or task not in CLASSES:
        return None

    def agreed() -> Counted:
        return count(AGREEMENT, SLICES)

    return Start(agreed(), agreed)
