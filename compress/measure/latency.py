"""Latency that may be claimed: interleaved, paired, with a confidence interval.

A machine drifts (clocks, other processes), so two models timed one after the other are not comparable. Here every round
times each model once, in shuffled order:  A B | B A | A B ...  and the speed-up is judged within rounds:

    r_i = time of the reference in round i / own time in round i          (above 1: faster than the reference)
    ratio = median of r_i,   ci95 = [low / 1.02, high * 1.02],  low, high: bootstrap percentiles of that median over rounds

Rounds that scatter too much say nothing whatever their interval: where other processes take the cores, times have two modes,
and the median, with a narrow interval, may lie on either. Where the quartiles of r_i are further apart than `MOST_SCATTER`, as a
ratio, nothing is claimed.

The 2 % stand for what rounds cannot show: two sessions of the very same file differ by that much from where their memory lies.
Without it 12 % of 56 comparisons of a model with itself (busy two-core machine) were called different; with it 5 %.
A sample repeats its call until it lasts some milliseconds, in up to `PARTS` parts, and is the median of these: the clock and the
call's overhead weigh little, and an interruption hits one part of many. Where the interval holds 1, nothing is claimed.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000  # the interval's ends move by less than 1 % of its width beyond this
LEAST_ROUNDS = 5
BETWEEN_SESSIONS = 1.02  # module docstring
PARTS = 9  # of a sample, where it has so many calls
MOST_SCATTER = 1.5  # module docstring


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
    """

    p50_ms: float
    ratio: float
    ci95: tuple[float, float]
    samples: int
    p50_ci95_ms: tuple[float, float] | None = None
    scatter: float = 1.0
    rounds_ms: tuple[float, ...] = ()

    @property
    def noisy(self) -> bool:
        """The rounds differ too much for any claim."""
        return self.scatter > MOST_SCATTER

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
) -> dict[str, Timing]:
    """Time all runners against one of them.

    Args:
        runners: name -> a call that returns when its work is done (a CUDA runner waits for the device).
        reference: the name in `runners` that the others are compared with.
        rounds: samples per runner.
        warmup: calls of each runner that are not timed.
        min_sample_ms: a sample repeats its call until it lasts about that long.
        budget_s: no further round is started once that time is used; at least 5 are.
        seed: of the order within rounds and of the bootstrap.
        clock: seconds; for tests.

    Returns:
        A timing per runner, in the order of `runners`. The reference's own ratio is 1.

    Raises:
        ValueError: `reference` is not among the runners, or fewer than 5 rounds.
    """
    if reference not in runners or rounds < LEAST_ROUNDS:
        raise ValueError(
            f"reference={reference!r}, rounds={rounds}: needed are one of {list(runners)} and at least {LEAST_ROUNDS} rounds"
        )
    random = np.random.default_rng(seed)
    names, started = list(runners), clock()
    times: dict[str, list[float]] = {name: [] for name in names}
    # Warm-up inside, too: a collection there would leave work for the timed calls.
    with _no_garbage_collection():
        for _ in range(warmup):
            for name in names:
                runners[name]()
        repeats = {name: _repeats(runners[name], min_sample_ms / 1e3, clock) for name in names}
        for done in range(rounds):
            # At least five rounds even over budget: fewer give no interval.
            if done >= LEAST_ROUNDS and clock() - started >= budget_s:
                break
            for i in random.permutation(len(names)):
                times[names[i]].append(_sample(runners[names[i]], repeats[names[i]], clock))
    return _judged({name: np.array(times[name]) for name in names}, reference, random)


def judge(seconds: Mapping[str, np.ndarray], reference: str, seed: int = 0) -> dict[str, Timing]:
    """Timings from the seconds of a call in each round, the same rounds for every name, timed in turns by somebody else."""
    return _judged(seconds, reference, np.random.default_rng(seed))


def _judged(seconds: Mapping[str, np.ndarray], reference: str, random: np.random.Generator) -> dict[str, Timing]:
    return {name: _timing(own, seconds[reference], random) for name, own in seconds.items()}


def _sample(run: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    """Seconds of one call: the median of parts that share `repeats` calls evenly."""
    parts = min(PARTS, repeats)
    calls, seconds = -(-repeats // parts), list[float]()
    for _ in range(parts):
        start = clock()
        for _ in range(calls):
            run()
        seconds.append((clock() - start) / calls)
    return statistics.median(seconds)


def _repeats(run: Callable[[], object], least_s: float, clock: Callable[[], float]) -> int:
    """How many calls last at least `least_s` together."""
    repeats = 1
    while True:
        lasted = _sample(run, repeats, clock) * repeats
        if lasted >= least_s or repeats >= 1 << 20:  # 2^20: a call that takes no time at all would never last long enough
            return repeats
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
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
