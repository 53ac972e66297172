"""What a run spent its time on, beside the stages themselves: opening, measuring, exporting."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from compress.pipeline.profiling import Profiler
from compress.progress import Progress
from compress.report.records import Spent

REST = "everything else"


@dataclass
class Purse:
    """Seconds of one process, by what they went to. Parts do not overlap.

    Attributes:
        clock: seconds; for tests.
    """

    clock: Callable[[], float] = time.perf_counter
    _parts: dict[str, float] = field(default_factory=dict[str, float], init=False)
    _began: float = field(init=False)
    _profiler: Profiler | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._began = self.clock()

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """The block's time goes to `what`, also where it raises."""
        start = self.clock()
        try:
            with self._profiler.on(what) if self._profiler else nullcontext():
                yield
        finally:
            self._parts[what] = self._parts.get(what, 0.0) + self.clock() - start

    def profiled(self, folder: Path, progress: Progress) -> Progress:
        """Look at every part from now on, into a folder; gives the progress that lets time pass there."""
        self._profiler = Profiler(folder)
        return self._profiler.through(progress)

    def told(self) -> tuple[Spent, ...]:
        """In the order in which each began; what nobody claimed comes last."""
        rest = self.clock() - self._began - sum(self._parts.values())
        return tuple(Spent(what=what, seconds=round(max(s, 0.0), 3)) for what, s in (*self._parts.items(), (REST, rest)))
