"""Model files timed in turns, each in a process of its own.

    parent:   A runs a round | B runs a round | B | A | ...      the others wait, and use no core

A process of its own keeps runtimes, their thread pools and their memory apart, and makes peak memory and loading time those of
one file. Calls are timed inside the process, so the way there costs nothing. The interval of the ratio is that of
`measure.latency`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from compress.measure import machine
from compress.measure.latency import LEAST_ROUNDS, MOST_SCATTER, Timing, judge

SECONDS_TO_LOAD = 300.0
ROUND_MS = 20.0
"""A round repeats its call until it lasts about that long."""
MOST_CALLS = 200
LEAST_HELD = 0.9
"""Of its time a process has to have had a core. Below that others took it, which hits long calls and not the short ones that fit
between two interruptions: the ratio of a small model to a large one then comes out many times too good, and steadily so."""
WARM_UP = 5


@dataclass(frozen=True)
class Candidate:
    """A file in a runtime; `shapes` (without the batch) serve a file that does not know its own."""

    model: str
    runtime: str
    path: Path
    batch: int
    threads: int
    shapes: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Figures:
    """What was measured of one candidate; everything but the first four is None where `reason` says why it did not run.

    Attributes:
        model: the file as it was named.
        runtime: where it ran.
        batch: samples per call.
        threads: threads inside an operator.
        p50_ms: median over rounds of the median call of a round.
        ratio: median of the paired speed-ups over the first candidate of the same batch and threads; above 1 is faster.
        ci95: 95 % confidence interval of `ratio`.
        samples: rounds.
        p50_ci95_ms: 95 % confidence interval of `p50_ms`.
        p90_ms: nine calls of ten are faster, over all rounds.
        p99_ms: 99 of a hundred are.
        per_second: samples per second at `p50_ms`.
        load_ms: from the file to a model that can be called.
        first_ms: the first call after that.
        peak_bytes: most memory that the process held, Python and the runtime included.
        joules: per call, of all processor packages while it ran, whatever else ran too.
        mhz: mean clock of the cores before and after.
        celsius: hottest sensor before and after.
        version: of the runtime.
        held: share of its time in which the process had a core, in the worse of it and the first.
        noisy: the rounds scatter too much for any claim, or others took the cores.
        verdict: faster, slower or cannot tell, beside the first.
        reason: why it was not measured.
    """

    model: str
    runtime: str
    batch: int
    threads: int
    p50_ms: float | None = None
    ratio: float | None = None
    ci95: tuple[float, float] | None = None
    samples: int | None = None
    p50_ci95_ms: tuple[float, float] | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    per_second: float | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    peak_bytes: int | None = None
    joules: float | None = None
    mhz: tuple[float | None, float | None] | None = None
    celsius: tuple[float | None, float | None] | None = None
    version: str | None = None
    held: float | None = None
    noisy: bool = False
    verdict: str | None = None
    reason: str | None = None


@dataclass
class Timed:
    """A candidate's process, and what it has answered so far."""

    candidate: Candidate
    process: subprocess.Popen[bytes]
    loaded: dict[str, Any] = field(default_factory=dict[str, Any])
    rounds: list[list[float]] = field(default_factory=list[list[float]])
    joules: list[float | None] = field(default_factory=list[float | None])
    processor_s: float = 0.0
    calls: int = 1
    peak_bytes: int | None = None
    failed: str | None = None

    def ask(self, order: Mapping[str, Any], seconds: float = SECONDS_TO_LOAD) -> dict[str, Any]:
        """Send an order and wait for the answer. A process that fails, ends or is silent says why in `failed`, and answers {}."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: the empty answer below says so
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else b""
        if not ready:
            self.failed = f"no answer for {seconds:g} s"
        elif not line:
            self.failed = f"the process ended ({self.process.wait()})"
        else:
            answer = json.loads(line)
            self.failed = answer.pop("error", None)
            if self.failed is None:
                return answer
        self.stop()
        return {}

    @property
    def held(self) -> float:
        """Share of the time of its rounds in which the process had at least one core."""
        wall = sum(map(sum, self.rounds))
        return min(self.processor_s / wall, 1.0) if wall else 1.0

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def race(
    candidates: Sequence[Candidate], *, rounds: int = 40, cpus: Sequence[int] = (), budget_s: float = 60.0, seed: int = 0
) -> list[Figures]:
    """Time candidates of one batch size and number of threads against the first of them that runs.

    Args:
        candidates: at least one.
        rounds: of each candidate.
        cpus: cores that the processes are pinned to; none leaves them free.
        budget_s: no further round is started once that time is used; at least five are.
        seed: of the order within rounds, and of the interval.
    """
    before = machine.state()
    with tempfile.TemporaryFile() as errors:
        timed = [Timed(candidate, _started(errors)) for candidate in candidates]
        try:
            for one in timed:
                _warm(one, cpus)
            _rounds([one for one in timed if one.failed is None], rounds, budget_s, seed)
            for one in timed:
                if one.failed is None:
                    one.peak_bytes = one.ask({"do": "end"}).get("peak_bytes")
        finally:
            for one in timed:
                one.stop()
    after = machine.state()
    running = {str(i): np.array([np.median(r) for r in one.rounds]) for i, one in enumerate(timed) if one.failed is None}
    first = next(iter(running), None)
    judged = judge(running, first, seed) if first is not None else {}
    held = 1.0 if first is None else timed[int(first)].held
    return [_figures(one, judged.get(str(i)), str(i) == first, held, before, after) for i, one in enumerate(timed)]


def _started(errors: Any) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", "exporters.runtimes.child"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment)


def _warm(one: Timed, cpus: Sequence[int]) -> None:
    """Load, run a few times, and find how many calls make a round."""
    what = one.candidate
    one.loaded = one.ask(
        {
            "do": "load", "runtime": what.runtime, "path": str(what.path.absolute()), "batch": what.batch,
            "threads": what.threads, "shapes": what.shapes, "cpus": list(cpus),
        }
    )  # fmt: skip
    seconds = [] if one.failed else one.ask({"do": "calls", "count": WARM_UP}).get("seconds", [])
    if seconds:
        one.calls = int(np.clip(round(ROUND_MS / 1e3 / max(float(np.median(seconds)), 1e-7)), 1, MOST_CALLS))


def _rounds(running: Sequence[Timed], rounds: int, budget_s: float, seed: int) -> None:
    random, started = np.random.default_rng(seed), time.perf_counter()
    for done in range(max(rounds, LEAST_ROUNDS)):
        if done >= LEAST_ROUNDS and time.perf_counter() - started >= budget_s:
            return
        for i in random.permutation(len(running)):
            one = running[i]
            if one.failed is None:
                energy = machine.joules()
                answer = one.ask({"do": "calls", "count": one.calls})
                one.rounds.append(answer.get("seconds", []))
                one.processor_s += answer.get("processor_s", 0.0)
                one.joules.append(machine.spent(energy, machine.joules()))


def _figures(
    one: Timed, timing: Timing | None, is_first: bool, held: float, before: machine.State, after: machine.State
) -> Figures:
    what = one.candidate
    threads = int(one.loaded.get("threads", what.threads))
    if timing is None:
        return Figures(what.model, what.runtime, what.batch, threads, reason=one.failed or "it was not reached")
    calls = np.concatenate([np.array(r) for r in one.rounds])
    means = np.array([np.median(r) for r in one.rounds])
    low, high = np.percentile(means, [25, 75])
    held = min(held, one.held)
    noisy = (
        timing.noisy or held < LEAST_HELD or bool(is_first and high / low > MOST_SCATTER)
    )  # the first has no ratio that could be steadier
    known = [j for j in one.joules if j is not None]
    return Figures(
        what.model, what.runtime, what.batch, threads,
        p50_ms=timing.p50_ms, ratio=timing.ratio, ci95=timing.ci95, samples=timing.samples, p50_ci95_ms=timing.p50_ci95_ms,
        p90_ms=1e3 * float(np.percentile(calls, 90)), p99_ms=1e3 * float(np.percentile(calls, 99)),
        per_second=1e3 * what.batch / timing.p50_ms, load_ms=1e3 * one.loaded["load_s"], first_ms=1e3 * one.loaded["first_s"],
        peak_bytes=one.peak_bytes, joules=sum(known) / (len(known) * one.calls) if known else None,
        mhz=(before.mhz, after.mhz), celsius=(before.celsius, after.celsius), version=one.loaded["version"],
        held=held, noisy=noisy, verdict="cannot tell" if noisy else timing.verdict,
    )  # fmt: skip
