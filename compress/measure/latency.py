"""Latency that may be claimed: interleaved, paired, with a confidence interval.

A machine drifts (clocks, other processes), so two models timed one after the other are not comparable. Here every round
times each model once, in shuffled order:  A B | B A | A B ...  and the speed-up is judged within rounds:

    r_i = time of the reference in round i / own time in round i          (above 1: faster than the reference)
    ratio = median of r_i,   ci95 = [low / 1.04, high * 1.04],  low, high: bootstrap percentiles of that median over rounds

Other processes that take the cores do not only add noise: times get two modes, and the median, with a narrow interval, may lie
on either. So every part of a sample is asked how long threads waited for a core (`machine.Waits`); a part that waited for more
than `MOST_WAITED` of its time is left out, a sample with less than half of its parts left throws its round away, and the round
is run again. Where more than every second round was thrown away, nothing is claimed: what is left was chosen. Nor is it where
the host of a virtual machine took more than `MOST_STOLEN` of its time, or where the quartiles of r_i are further apart than
`MOST_SCATTER`, as a ratio. A clock that changes needs no such care: it changes for both of a pair.
The limits are measured (`benchmarks/busy_races.py`).

The 4 % stand for what rounds cannot show: two sessions of the very same file differ by 2 % from where their memory lies, and
beside a process that computes on another core, so that nobody waits, ratios of short calls are up to twice that from the quiet
ones.
A sample repeats its call until it lasts some milliseconds, in up to `PARTS` parts, and is the median of these: the clock and the
call's overhead weigh little, and an interruption hits one part of many. The call that follows another model's finds the caches
full of that one's weights, and is slower than the next: a sample begins with a call that is not
counted and has `machine.LEAST_CALLS` more at least, unless that takes longer than `machine.WARMING_S`: then a call fills the
caches by itself.
Where the interval holds 1, nothing is claimed.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from compress.measure import heap
from compress.measure.intervals import beside_one
from exporters.standalone import machine

RESAMPLES = 2000  # the interval's ends move by less than 1 % of its width beyond this
BETWEEN_SESSIONS = 1.04  # module docstring
PARTS = 9  # of a sample, where it has so many calls
MOST_SCATTER = 1.25  # module docstring
MOST_TRIES = 10  # samples that are taken again while the number of calls is looked for


@dataclass(frozen=True)
class Timing:
    """Latency of one runner beside the reference.

    Attributes:
        p50_ms: median over rounds of the time of one call, in milliseconds.
        ratio: median of the paired speed-ups over the reference; above 1 is faster.
        ci95: 95 % confidence interval of `ratio`.
        samples: rounds that were timed.
        p50_ci95_ms: 95 % confidence interval of `p50_ms`, widened like that of the ratio.
        scatter: upper by lower quartile of the paired speed-ups; 1 is perfectly steady.
        rounds_ms: time of one call in each round, in the order of the rounds.
        calm: share of the rounds that others did not disturb; 0 where the host took the time.
    """

    p50_ms: float
    ratio: float
    ci95: tuple[float, float]
    samples: int
    p50_ci95_ms: tuple[float, float] | None = None
    scatter: float = 1.0
    rounds_ms: tuple[float, ...] = ()
    calm: float = 1.0

    @property
    def noisy(self) -> bool:
        """The rounds differ too much, or were disturbed too often, for any claim."""
        return self.scatter > MOST_SCATTER or self.calm < machine.LEAST_CALM

    @property
    def told(self) -> str:
        """How much faster, with the interval, as a part of a sentence; where nothing may be claimed, why."""
        said = f"{self.ratio:.2f}x as fast (95 % interval {beside_one(self.ci95[0])} to {beside_one(self.ci95[1])}"
        if self.calm < machine.LEAST_CALM:
            said += f"; of no worth, other processes took the cores in {1 - self.calm:.0%} of the rounds"
        elif self.noisy:
            said += "; of no worth, the rounds scatter too much"
        return f"{said})"

    @property
    def faster(self) -> bool:
        """Measurably faster than the reference."""
        return self.ci95[0] > 1 and not self.noisy

    @property
    def slower(self) -> bool:
        """Measurably slower than the reference."""
        return self.ci95[1] < 1 and not self.noisy

    @property
    def verdict(self) -> str:
        """`faster`, `slower` or `cannot tell`."""
        return "faster" if self.faster else "slower" if self.slower else "cannot tell"


def compare(
    runners: Mapping[str, Callable[[], object]],
    reference: str,
    *,
    rounds: int = 40,
    warmup: int = 3,
    min_sample_ms: float = 5.0,
    budget_s: float = 60.0,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    waits: Callable[[], machine.Waits] = machine.Waits,
) -> dict[str, Timing]:
    """Time all runners against one of them.

    Args:
        runners: name -> a call that returns when its work is done (a CUDA runner waits for the device).
        reference: the name in `runners` that the others are compared with.
        rounds: samples per runner; up to twice as many are tried where others disturb them.
        warmup: calls of each runner that are not timed.
        min_sample_ms: a sample repeats its call until it lasts about that long.
        budget_s: no further round is started once that time is used; at least 5 are.
        seed: of the order within rounds and of the bootstrap.
        clock: seconds; for tests.
        waits: called once, after the warm-up, when all threads are there; tells how long they have waited for a core.

    Returns:
        A timing per runner, in the order of `runners`. The reference's own ratio is 1.

    Raises:
        ValueError: `reference` is not among the runners, or fewer than 5 rounds.
    """
    if reference not in runners or rounds < machine.LEAST_ROUNDS:
        raise ValueError(
            f"reference={reference!r}, rounds={rounds}: needed are one of {list(runners)} and "
            f"at least {machine.LEAST_ROUNDS} rounds"
        )
    random = np.random.default_rng(seed)
    names = list(runners)
    found: machine.Rounds[dict[str, float]] = machine.Rounds(rounds, budget_s, clock=clock)
    # Warm-up inside, too: a collection there would leave work for the timed calls.
    with _no_garbage_collection(), heap.as_usual():
        for _ in range(warmup):
            for name in names:
                runners[name]()
        waited = waits()
        repeats = {name: _repeats(runners[name], min_sample_ms / 1e3, clock, waited) for name in names}
        while found.lacking:
            samples = {
                n: _sample(runners[n], repeats[n], clock, waited) for i in random.permutation(len(names)) if (n := names[i])
            }
            undisturbed = all(undisturbed for _, undisturbed in samples.values())
            found.add({name: seconds for name, (seconds, _) in samples.items()}, undisturbed)
    share, shown = found.told(waited.stolen)
    return _judged({name: np.array([one[name] for one in shown]) for name in names}, reference, random, share)


def judge(seconds: Mapping[str, np.ndarray], reference: str, seed: int = 0) -> dict[str, Timing]:
    """Timings from the seconds of a call in each round, the same rounds for every name, timed in turns by somebody else."""
    return _judged(seconds, reference, np.random.default_rng(seed))


def pooled(sessions: Sequence[Mapping[str, Timing]], reference: str, seed: int = 0) -> dict[str, Timing]:
    """Timings of the same runners in several sessions, judged as one."""
    if len(sessions) == 1:
        return dict(sessions[0])
    calm = sum(one[reference].calm for one in sessions) / len(sessions)
    names = sessions[0]
    seconds = {name: np.concatenate([np.array(one[name].rounds_ms) for one in sessions]) / 1e3 for name in names}
    return _judged(seconds, reference, np.random.default_rng(seed), calm)


def both(one: Timing, other: Timing) -> Timing:
    """Two timings of the same pair as one: their mean ratio, in an interval as wide as theirs."""
    low, high = (math.sqrt(a * b) for a, b in zip(one.ci95, other.ci95, strict=True))
    return replace(
        one,
        p50_ms=math.sqrt(one.p50_ms * other.p50_ms),
        ratio=math.sqrt(one.ratio * other.ratio),
        ci95=(low, high),
        samples=one.samples + other.samples,
        p50_ci95_ms=None,
        scatter=max(one.scatter, other.scatter),
        calm=min(one.calm, other.calm),
    )


def _judged(
    seconds: Mapping[str, np.ndarray], reference: str, random: np.random.Generator, calm: float = 1.0
) -> dict[str, Timing]:
    return {name: replace(_timing(own, seconds[reference], random), calm=calm) for name, own in seconds.items()}


def _sample(
    run: Callable[[], object], repeats: int, clock: Callable[[], float], waited: Callable[[], float]
) -> tuple[float, bool]:
    """Seconds of one call, the median of undisturbed parts that share `repeats` calls evenly; whether half of them were that."""
    parts = min(PARTS, repeats)
    if repeats > 1:  # module docstring: caches
        run()
    calls, seconds, calm = -(-repeats // parts), list[float](), list[float]()
    for _ in range(parts):
        before = waited()
        start = clock()
        for _ in range(calls):
            run()
        lasted = clock() - start
        seconds.append(lasted / calls)
        if waited() - before <= machine.MOST_WAITED * lasted:
            calm.append(lasted / calls)
    return statistics.median(calm or seconds), 2 * len(calm) >= parts


def _repeats(run: Callable[[], object], least_s: float, clock: Callable[[], float], waited: Callable[[], float]) -> int:
    """How many calls last at least `least_s` together."""
    repeats, disturbed = 1, 0
    run()  # after which the caches are its own
    while True:
        one, calm = _sample(run, repeats, clock, waited)
        # A call that had to wait looks longer than it is, and too few calls would make every sample.
        if not calm and (disturbed := disturbed + 1) < MOST_TRIES:
            continue
        lasted = one * repeats
        if lasted >= least_s or repeats >= 1 << 20:  # 2^20: a call that takes no time at all would never last long enough
            return max(repeats, machine.warming(one))
        # Aim past the mark by a fifth, and never trust one short sample for more than a tenfold step.
        repeats = max(repeats + 1, min(repeats * 10, int(1.2 * repeats * least_s / max(lasted, 1e-9))))


def _timing(own: np.ndarray, reference: np.ndarray, random: np.random.Generator) -> Timing:
    # A seed of its own, so that the interval of the ratio does not depend on how many runners there are.
    p50_ms, of_p50 = 1e3 * float(np.median(own)), _interval(1e3 * own, np.random.default_rng(0))
    rounds = tuple(1e3 * float(second) for second in own)
    if own is reference:
        return Timing(p50_ms, 1.0, (1.0, 1.0), len(own), of_p50, rounds_ms=rounds)
    pairs = reference / own
    low, high = np.percentile(pairs, [25, 75])
    # Paired within rounds: what slowed a round down slowed both.
    return Timing(p50_ms, float(np.median(pairs)), _interval(pairs, random), len(own), of_p50, float(high / low), rounds)


def _interval(values: np.ndarray, random: np.random.Generator) -> tuple[float, float]:
    """Bootstrap percentiles of the median, widened by what two sessions of one file differ."""
    resampled = np.median(values[random.integers(0, len(values), (RESAMPLES, len(values)))], axis=1)
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(low) / BETWEEN_SESSIONS, float(high) * BETWEEN_SESSIONS


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection inside one sample would be charged to whoever happened to run."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
