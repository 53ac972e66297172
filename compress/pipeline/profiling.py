"""`--profile`: where the time of every part of a run went, operation by operation, on any device.

    profile/NN-PART.json.gz   a trace of torch's profiler, to be opened in ui.perfetto.dev or chrome://tracing
    profile/profile.md        of every part the operations that took longest, and how much of the part was looked at

A part is looked at for its first seconds: a training has millions of operations, which would fill the memory. Only the first time
counts of one that comes again, as counting quality does.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from compress.progress import Progress
from compress.report.markdown import grid

FOLDER = "profile"
_SECONDS = 10.0
"""How long a part is looked at."""
_ROWS = 12


@dataclass
class Profiler:
    """Looks at the parts of a run, one at a time.

    Attributes:
        folder: of the traces; made where it is not there.
    """

    folder: Path
    _sections: list[str] = field(default_factory=list[str], init=False)
    _seen: set[str] = field(default_factory=set[str], init=False)
    _open: tuple[profile, float] | None = field(default=None, init=False)
    _looked: float = field(default=0.0, init=False)

    @contextmanager
    def on(self, part: str) -> Iterator[None]:
        """Look at the block's first seconds; a block inside another, or one of a part that was looked at, is left alone."""
        if part in self._seen or self._open is not None:
            yield
            return
        self._seen.add(part)
        start = time.perf_counter()
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # of what torch profiles by, which else writes to the terminal
        made = profile(activities=list(_activities()))
        made.start()
        self._open = made, start
        try:
            yield
        finally:
            self.tick(last=True)
            self._told(part, made, time.perf_counter() - start)

    def tick(self, last: bool = False) -> None:
        """Time has passed: what is looked at for long enough is looked at no longer. Called in the thread of the run."""
        if self._open is not None and (last or time.perf_counter() - self._open[1] > _SECONDS):
            made, start = self._open
            self._looked, self._open = time.perf_counter() - start, None
            made.stop()

    def through(self, progress: Progress) -> Progress:
        """A progress that lets time pass."""

        def told(*said: Any) -> None:
            self.tick()
            progress(*said)

        return told

    def _told(self, part: str, made: profile, seconds: float) -> None:
        self.folder.mkdir(exist_ok=True)
        name = f"{len(self._sections):02d}-{part.replace(' ', '-').replace('/', '-')}.json.gz"
        made.export_chrome_trace(str(self.folder / name))
        rows = sorted(made.key_averages(), key=lambda one: _own(one)[0], reverse=True)
        whole = sum(_own(one)[0] for one in rows) or 1.0
        table = grid(
            ("operation", "calls", "seconds, of its own", "share"),
            [
                (f"`{one.key}`{_own(one)[1]}", f"{one.count:,}", f"{_own(one)[0] / 1e6:.3f}", f"{_own(one)[0] / whole:.1%}")
                for one in rows[:_ROWS]
            ],
        )
        looked = f"the first {self._looked:.1f} s of them" if self._looked < seconds - 0.1 else "all of them"
        self._sections.append(f"## {part}\n\n{seconds:.1f} s, looked at {looked}; `{name}`.\n\n{table}\n")
        text = "# Where the time went\n\nSlower than without being looked at: each operation is noted down.\n\n"
        (self.folder / "profile.md").write_text(text + "\n".join(self._sections))


def _activities() -> Iterator[ProfilerActivity]:
    yield ProfilerActivity.CPU
    if torch.cuda.is_available():
        yield ProfilerActivity.CUDA


def _own(one: Any) -> tuple[float, str]:
    """Microseconds of an operation without those inside it, on the device where it has any, and a word of where."""
    device = float(getattr(one, "self_device_time_total", 0.0) or 0.0)
    return (device, " (device)") if device > 0 else (float(one.self_cpu_time_total), "")
