"""Model files timed in turns, each in a process of its own (exporters/standalone/racing.py), and judged beside the first.

The interval of the ratio is that of `measure.latency`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from compress.measure.latency import MOST_SCATTER, Timing, judge
from exporters.standalone import machine, racing
from exporters.standalone.machine import State
from exporters.standalone.racing import LEAST_HELD, Measured


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
        device: what it ran on; None for this machine.
        held: share of its time in which the process had a core, in the worse of it and the first.
        calm: share of the rounds that others did not disturb.
        gpu_ms: of a call on the device itself, between two events of its queue; in CUDA's runtimes, as all that follows.
        gpu_bytes: of the device's memory that opening and the first call took, by the driver's own count.
        gpu_allocated_bytes: the most of it that torch had handed out.
        gpu_mhz: clock of the device before and after.
        gpu_celsius: its temperature before and after.
        noisy: the rounds scatter too much for any claim, or others took the cores from too many of them.
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
    device: str | None = None
    held: float | None = None
    calm: float | None = None
    gpu_ms: float | None = None
    gpu_bytes: int | None = None
    gpu_allocated_bytes: int | None = None
    gpu_mhz: tuple[float | None, float | None] | None = None
    gpu_celsius: tuple[float | None, float | None] | None = None
    noisy: bool = False
    verdict: str | None = None
    reason: str | None = None


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
    # The child needs the same packages, whatever put them on our path.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    # -P: nor anything of the current folder, which may be a stranger's.
    command = [sys.executable, "-P", "-m", "exporters.runtimes.child"]
    orders = [asdict(c) | {"path": str(c.path.absolute()), "cpus": list(cpus)} for c in candidates]
    measured = racing.race(orders, command, rounds, budget_s, seed, environment)
    return judged(candidates, measured, before, machine.state(), seed=seed)


def judged(
    candidates: Sequence[Candidate],
    measured: Sequence[Measured],
    before: State,
    after: State,
    *,
    seed: int = 0,
    device: str | None = None,
) -> list[Figures]:
    """Figures of candidates that were timed in the same rounds, each beside the first that ran.

    Args:
        candidates: in the order of `measured`.
        measured: what each told.
        before: the machine before the first round.
        after: the machine after the last one.
        seed: of the interval.
        device: where that was; None for this machine.
    """
    # The median call of a round.
    running = {str(i): np.array([np.median(r) for r in one.rounds]) for i, one in enumerate(measured) if one.failed is None}
    first = next(iter(running), None)
    timings = judge(running, first, seed) if first is not None else {}
    # Where the first lost its cores, every ratio to it is in doubt.
    held = 1.0 if first is None else measured[int(first)].held
    found: list[Figures] = []
    for i, (candidate, one) in enumerate(zip(candidates, measured, strict=True)):
        figures = _figures(candidate, one, timings.get(str(i)), str(i) == first, held)
        seen = {"mhz": (before.mhz, after.mhz), "celsius": (before.celsius, after.celsius)} if figures.reason is None else {}
        found.append(replace(figures, device=device, **seen))
    return found


def _figures(what: Candidate, one: Measured, timing: Timing | None, is_first: bool, held: float) -> Figures:
    threads = int(one.loaded.get("threads", what.threads))
    if timing is None:
        return Figures(what.model, what.runtime, what.batch, threads, reason=one.failed or "it was not reached")
    calls = np.concatenate([np.array(r) for r in one.rounds])
    means = np.array([np.median(r) for r in one.rounds])
    low, high = np.percentile(means, [25, 75])
    held = min(held, one.held)
    # The first has no ratio that could be steadier.
    noisy = timing.noisy or one.calm < machine.LEAST_CALM or held < LEAST_HELD or bool(is_first and high / low > MOST_SCATTER)
    known = [j for j in one.joules if j is not None]
    return Figures(
        what.model, what.runtime, what.batch, threads,
        p50_ms=timing.p50_ms, ratio=timing.ratio, ci95=timing.ci95, samples=timing.samples, p50_ci95_ms=timing.p50_ci95_ms,
        p90_ms=1e3 * float(np.percentile(calls, 90)), p99_ms=1e3 * float(np.percentile(calls, 99)),
        per_second=1e3 * what.batch / timing.p50_ms, load_ms=1e3 * one.loaded["load_s"], first_ms=1e3 * one.loaded["first_s"],
        peak_bytes=one.peak_bytes, joules=sum(known) / (len(known) * one.calls) if known else None,
        version=one.loaded["version"], held=held, calm=one.calm, noisy=noisy, verdict="cannot tell" if noisy else timing.verdict,
    )  # fmt: skip
