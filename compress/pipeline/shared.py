"""What several runs of one model and one data set have in common: opened, looked at and measured once.

The recipes may differ in what is done to the model; what it is, what it is looked at with and how it is measured is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import TypeVar

from compress.measure import quality
from compress.pipeline.harness import Measured
from compress.progress import Progress
from compress.recipe import Recipe
from compress.stage import Context, Findings

T = TypeVar("T")
NOT_TIMED = "No row was timed, since this is one of many runs and none is chosen by its time; 'compress bench' times its files."


@dataclass
class Shared:
    """Of all runs of one model in this process.

    Attributes:
        context: model, data and device.
        metric: what quality is.
        dense: the dense model as the first run measured it; None until then.
        timed: whether the rows of the runs have times, where nobody chooses by these.
    """

    context: Context
    metric: quality.Metric
    dense: Measured | None = None
    timed: bool = True

    def __post_init__(self) -> None:
        self.context = replace(self.context, findings=_OfTheDense(self.context.dense.module))
        if not self.timed:
            self.context = replace(self.context, dense=self.context.dense.noting(NOT_TIMED))

    def for_run(self, recipe: Recipe, progress: Progress) -> tuple[Context, quality.Metric]:
        """What one run works on, as `prepare` gives it."""
        settled = recipe.model_copy(update={"align": recipe.align or 1})
        return replace(self.context, recipe=settled, progress=progress), self.metric


class _OfTheDense(Findings):
    """Keeps what is found out about the dense model; smaller models come and go, and only the last one's is kept."""

    def __init__(self, dense: object) -> None:
        super().__init__()
        self._dense, self._last, self._of_last = dense, dense, Findings()

    def of(self, model: object, key: Hashable, find: Callable[[], T]) -> T:
        if model is self._dense:
            return super().of(model, key, find)
        if model is not self._last:
            self._last, self._of_last = model, Findings()
        return self._of_last.of(model, key, find)

    def knows(self, model: object, key: Hashable) -> bool:
        if model is self._dense:
            return super().knows(model, key)
        return model is self._last and self._of_last.knows(model, key)
