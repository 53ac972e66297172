"""What a run tells its trackers, and that none of them can end it: one that fails is left out from then on, with a warning."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from compress.curves import TrainingCurve
from compress.errors import BadInput, CompressWarning, extra
from compress.loggers.sinks import QUIET, SINKS, Sink
from compress.measure import meant
from compress.recipe import Recipe
from compress.report import records
from compress.report.records import StageRecord

FOLDER = "trackers"
FILES = ("report.md", "report.html", "report.json", "plan.json", "recipe.toml")
"""What trackers that keep files are given; models stay where they are."""


class Loggers:
    """The trackers of one run that still work."""

    def __init__(self, names: Sequence[str], out: Path, recipe: Recipe) -> None:
        self.out, self.recipe, self.lost = out, recipe, list[str]()
        self.waiting = list(names)
        self.open: dict[str, Sink] = {}
        self.stages, self.trainings = 0, 0

    def stage(self, record: StageRecord, trainings: Sequence[TrainingCurve]) -> None:
        """A stage is finished; `trainings` are all of the run so far."""
        self._begin()
        for training in trainings[self.trainings :]:
            group = f"{self.trainings}-{training.stage}" if self.trainings else training.stage
            for number, epoch in enumerate(training.epochs):
                figures = {training.metric: epoch.quality} | ({} if epoch.loss is None else {"loss": epoch.loss})
                self._each(lambda sink, f=figures, n=number, g=group: sink.figures(f"training-{g}", f, n))
            self.trainings += 1
        self._each(lambda sink: sink.figures("stages", figures_of(record), self.stages))
        self.stages += 1

    def close(self, kept: bool) -> None:
        """The run is over; its report is told, if it has one."""
        if not self.open:
            return
        paths = [path for name in FILES if (path := self.out / name).is_file()]
        try:
            verdict = records.read(self.out)[0].verdict
        except BadInput:  # there is none, or somebody changed it meanwhile
            verdict = "no result"
        self._each(lambda sink: sink.files(paths, verdict))
        self._each(lambda sink: sink.close(kept))

    def _begin(self) -> None:
        """Open what was asked for; not before the first stage, so that a run that is refused leaves no trace of itself."""
        values = {name: value for name, value in self.recipe.model_dump(mode="json").items() if value not in (None, "", [], {})}
        plain = {key: value if isinstance(value, str | int | float) else str(value) for key, value in values.items()}
        name = self.out.absolute().name
        for one in self.waiting:
            self._guarded(one, lambda one=one: self.open.update({one: SINKS[one](self.out / FOLDER / one, name)}))
        if self.waiting:
            self.waiting = []
            self._each(lambda sink: sink.settings(plain))

    def _each(self, tell: Callable[[Sink], None]) -> None:
        for name, sink in list(self.open.items()):
            self._guarded(name, lambda sink=sink: tell(sink))

    def _guarded(self, name: str, do: Callable[[], None]) -> None:
        try:
            do()
        # Each library has kinds of its own, and some exit; a run of hours does not end over a tracker.
        except (Exception, SystemExit) as error:
            self.open.pop(name, None)
            told = " ".join(str(error).split())[:200] or type(error).__name__
            self.lost.append(
                f"The run is no longer logged to {name} ({told}), and goes on without. Everything is in the run's folder; look "
                f"at the tracker's own settings, or leave --log {name} out."
            )
            warnings.warn(self.lost[-1], CompressWarning, stacklevel=2)


def figures_of(record: StageRecord) -> dict[str, float]:
    """A row of the report, as far as it was measured."""
    found: dict[str, float] = {
        "params": record.params,
        "macs": record.macs,
        "file_bytes": record.file_bytes,
        "peak_memory_bytes": record.peak_memory_bytes,
        "seconds": record.seconds,
    }
    if record.latency is not None:
        low, high = record.latency.ci95
        found |= {"p50_ms": record.latency.p50_ms, "speedup": record.latency.ratio, "speedup_low": low, "speedup_high": high}
    if record.quality is not None:
        found[record.quality.metric] = record.quality.value
    return {key: float(value) for key, value in found.items() if math.isfinite(value)}


def chosen(log: str | Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of trackers, and a warning of each that is left out because it is not installed, told before anything slow.

    Raises:
        BadInput: one that nobody knows.
    """
    names = dict.fromkeys(name.strip() for text in ((log,) if isinstance(log, str) else log) for name in text.split(","))
    there, lacking = list[str](), list[str]()
    for name in filter(None, names):
        if name not in SINKS:
            raise BadInput(f"--log is '{name}'; known are {', '.join(SINKS)}, several with commas.{meant.one_of(name, SINKS)}")
        if find_spec(name) is None:
            lacking.append(f"The run is not logged to {name}, which is not installed, and goes on without: {extra(name)}.")
            warnings.warn(lacking[-1], CompressWarning, stacklevel=2)
            continue
        there.append(name)
    return tuple(there), tuple(lacking)


@contextmanager
def logged(names: Sequence[str], out: Path, recipe: Recipe) -> Generator[Loggers]:
    """The trackers of a run, as `chosen` gives them; closed when the block is left, however that comes."""
    if names:
        for variable, value in QUIET.items():
            os.environ.setdefault(variable, value)
    found = Loggers(names, out, recipe)
    kept = False
    try:
        yield found
        kept = True
    finally:
        found.close(kept)
