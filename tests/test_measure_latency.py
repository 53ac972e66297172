"""Timing with a clock that is told what time it is."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from compress.measure.latency import Timing, compare
from exporters.standalone import machine


class Waits(machine.Waits):
    """As long as a runner says."""

    def __init__(self, stolen: float = 0.0) -> None:
        self.now, self.host = 0.0, stolen

    def __call__(self) -> float:
        return self.now

    @property
    def stolen(self) -> float:
        return self.host


# On a machine that others use, what a test waits for must not count.
timed = partial(compare, waits=Waits)


class Clock:
    """Time that passes only when a runner says so."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, list[str]()

    def __call__(self) -> float:
        return self.now

    def runner(self, name: str, ms: float, noise: float = 0.0, drift: float = 0.0) -> Callable[[], None]:
        random = np.random.default_rng(len(name))

        def run() -> None:
            self.calls.append(name)
            self.now += ms / 1e3 * (1 + noise * random.random()) * (1 + drift * self.now)

        return run


def test_a_model_twice_as_fast_has_the_ratio_two():
    clock = Clock()
    found = timed({"dense": clock.runner("dense", 4), "small": clock.runner("small", 2)}, "dense", rounds=10, clock=clock)
    assert found["small"].ratio == pytest.approx(2)  # the clock is exact up to rounding
    assert found["small"].p50_ms == pytest.approx(2)
    assert found["small"].faster and found["small"].samples == 10
    assert (found["dense"].ratio, found["dense"].ci95) == (1.0, (1.0, 1.0))


def test_equal_models_under_noise_are_not_told_apart():
    clock = Clock()
    runners = {"dense": clock.runner("dense", 4, noise=0.3), "same": clock.runner("same", 4, noise=0.3)}
    found = timed(runners, "dense", rounds=40, clock=clock)["same"]
    assert found.ci95[0] < 1 < found.ci95[1]
    assert found.verdict == "cannot tell" and not found.faster and not found.slower


def test_a_difference_of_a_percent_is_not_claimed_however_steady():
    clock = Clock()
    found = timed({"dense": clock.runner("dense", 4), "same": clock.runner("same", 3.96)}, "dense", rounds=40, clock=clock)
    assert found["same"].ratio == pytest.approx(4 / 3.96) and found["same"].verdict == "cannot tell"


def test_a_slower_model_is_called_slower():
    clock = Clock()
    runners = {"dense": clock.runner("dense", 2, noise=0.1), "big": clock.runner("big", 4, noise=0.1)}
    assert timed(runners, "dense", rounds=20, clock=clock)["big"].verdict == "slower"


def test_drift_of_the_machine_does_not_make_a_difference():
    # The machine becomes three times slower during the measurement; timed one after the other, "same" would look slower.
    clock = Clock()
    runners = {"dense": clock.runner("dense", 4, drift=0.5), "same": clock.runner("same", 4, drift=0.5)}
    found = timed(runners, "dense", rounds=40, min_sample_ms=2, clock=clock)["same"]
    assert found.ratio == pytest.approx(1, abs=0.03)  # drift within one round
    assert clock.now > 3


def test_an_interruption_inside_a_sample_does_not_count():
    clock = Clock()
    calm = clock.runner("a", 1)

    def interrupted() -> None:
        calm()
        if len(clock.calls) % 5 == 0:
            clock.now += 0.02

    found = timed({"a": interrupted}, "a", rounds=10, min_sample_ms=9, clock=clock)["a"]
    assert found.p50_ms == pytest.approx(1)


def test_rounds_that_scatter_support_no_claim():
    clock = Clock()
    fast, calls = clock.runner("b", 60), list[int]()

    def sometimes_slow() -> None:
        fast()
        calls.append(1)
        clock.now += 0.3 * (len(calls) % 3 == 0)

    found = timed({"a": clock.runner("a", 120), "b": sometimes_slow}, "a", rounds=40, clock=clock)["b"]
    assert found.ratio == pytest.approx(2) and found.ci95[0] > 1, "the median and its interval look fine"
    assert found.noisy and found.verdict == "cannot tell" and not found.faster
    steady = timed({"a": clock.runner("a", 12), "b": clock.runner("b", 6)}, "a", rounds=40, clock=clock)["b"]
    assert steady.scatter == pytest.approx(1) and steady.faster


def test_every_round_times_each_model_once_in_changing_order():
    clock = Clock()
    timed({"a": clock.runner("a", 60), "b": clock.runner("b", 60)}, "a", rounds=20, warmup=0, min_sample_ms=2, clock=clock)
    rounds = [clock.calls[i : i + 2] for i in range(4, 44, 2)]  # two calls each found the number of repeats
    assert all(sorted(pair) == ["a", "b"] for pair in rounds)
    assert {tuple(pair) for pair in rounds} == {("a", "b"), ("b", "a")}


def test_the_same_seed_gives_the_same_order_and_interval():
    def once() -> tuple[list[str], Timing]:
        clock = Clock()
        found = timed({"a": clock.runner("a", 3, noise=0.5), "bb": clock.runner("bb", 3, noise=0.5)}, "a", seed=7, clock=clock)
        return clock.calls, found["bb"]

    assert once() == once()


def test_a_short_call_is_repeated_until_the_sample_is_long_enough():
    clock = Clock()
    found = timed({"a": clock.runner("a", 0.01)}, "a", rounds=5, warmup=0, min_sample_ms=2, clock=clock)
    assert found["a"].p50_ms == pytest.approx(0.01)
    assert len(clock.calls) > 5 * 200


# A fifth past the mark: 8 calls would be enough, 9.6 are aimed at.
@pytest.mark.parametrize(
    ("ms", "tries", "repeats"), [(1000 / 16, [1], 1), (1000 / 64, [1], 3), (1000 / 256, [1, 2], 5), (1000 / 1024, [1, 9], 9)]
)
def test_a_sample_lasts_at_least_as_long_as_was_asked_for_and_not_much_longer(ms: float, tries: list[int], repeats: int):
    # Times are powers of two, which the clock adds without rounding. Of several calls the first is not counted.
    clock = Clock()
    timed({"a": clock.runner("a", ms)}, "a", rounds=5, warmup=0, min_sample_ms=1000 / 128, clock=clock)
    assert len(clock.calls) == sum(one + (one > 1) for one in [*tries, *[repeats] * 5]) + 1


@pytest.mark.parametrize("ms", [0.1, 1, 4, 9])
def test_the_call_that_finds_the_caches_full_of_the_other_model_is_not_counted(ms: float):
    clock = Clock()

    def sharing(name: str, ms: float, cold: float) -> Callable[[], None]:
        run = clock.runner(name, ms)

        def call() -> None:
            clock.now += cold / 1e3 if clock.calls and clock.calls[-1] != name else 0.0
            run()

        return call

    found = timed({"large": sharing("large", 2 * ms, 5 * ms), "small": sharing("small", ms, ms)}, "large", rounds=10, clock=clock)
    assert found["small"].ratio == pytest.approx(2) and found["small"].p50_ms == pytest.approx(ms)


def test_warmup_calls_are_those_of_every_runner_and_none_of_them_is_timed():
    clock = Clock()
    tick, seen = clock.runner("a", 60), list[int]()

    def slow_at_first() -> None:
        tick()
        seen.append(1)
        clock.now += 10 * (len(seen) <= 4)

    found = timed({"a": slow_at_first, "b": clock.runner("b", 60)}, "a", rounds=5, warmup=4, clock=clock)
    assert clock.calls[:8] == ["a", "b"] * 4 and len(clock.calls) == 8 + 4 + 10
    assert found["a"].p50_ms == pytest.approx(60)


def test_nothing_but_the_calls_lies_between_two_looks_at_the_clock():
    looks = list[int]()
    clock = Clock()
    run = clock.runner("a", 60)

    def looking() -> float:
        looks.append(len(clock.calls))
        return clock()

    timed({"a": run}, "a", rounds=5, warmup=2, min_sample_ms=4, budget_s=1e9, clock=looking)
    # At the start; around the second call that finds the number of repeats; then around each round's.
    assert looks == [0, 3, 4, *(n for done in range(4, 9) for n in (done, done + 1))]


def test_the_time_that_is_used_counts_from_the_start_with_everything_in_it():
    clock = Clock()
    clock.now = 1000.0
    found = timed({"a": clock.runner("a", 1000)}, "a", rounds=40, warmup=2, budget_s=10, clock=clock)
    assert found["a"].samples == 6  # 2 s of warm-up and 2 s to find the repeats: after 6 rounds 10 s are reached


def test_the_budget_ends_the_rounds_but_never_below_five():
    clock = Clock()
    assert timed({"a": clock.runner("a", 1000)}, "a", rounds=40, warmup=0, budget_s=1, clock=clock)["a"].samples == 5
    clock = Clock()
    assert timed({"a": clock.runner("a", 1000)}, "a", rounds=40, warmup=0, budget_s=10, clock=clock)["a"].samples == 8


def test_garbage_collection_waits_and_comes_back_even_after_an_error():
    seen: list[bool] = []
    clock = Clock()
    tick = clock.runner("a", 5)

    def run() -> None:
        seen.append(gc.isenabled())
        tick()
        if len(seen) > 8:
            raise RuntimeError("broke")

    assert gc.isenabled()
    with pytest.raises(RuntimeError, match="broke"):
        timed({"a": run}, "a", clock=clock)
    assert gc.isenabled() and not any(seen)


@pytest.mark.parametrize(("reference", "rounds"), [("none", 10), ("a", 4)])
def test_an_unknown_reference_or_too_few_rounds_are_refused(reference: str, rounds: int):
    with pytest.raises(ValueError, match="at least 5 rounds"):
        timed({"a": lambda: None}, reference, rounds=rounds)


def test_the_median_has_an_interval_of_its_own():
    clock = Clock()
    found = timed({"dense": clock.runner("dense", 4, noise=0.3), "b": clock.runner("b", 2)}, "dense", rounds=40, clock=clock)
    low, high = found["dense"].p50_ci95_ms or (0, 0)
    assert 4 < low < found["dense"].p50_ms < high < 4 * 1.3 * 1.04  # the noise only adds
    assert found["b"].p50_ci95_ms == pytest.approx((2 / 1.04, 2 * 1.04))


def disturbing(clock: Clock, waits: Waits, name: str, ms: float, every: int) -> Callable[[], None]:
    """A runner that another process takes the core from for 20 ms, in every so many-th of its calls."""
    run = clock.runner(name, ms)

    def call() -> None:
        run()
        if clock.calls.count(name) % every == 0:
            clock.now += 0.02
            waits.now += 0.02

    return call


def test_rounds_in_which_a_core_was_taken_are_thrown_away_and_run_again():
    clock, waits = Clock(), Waits()
    runners = {"a": clock.runner("a", 120), "b": disturbing(clock, waits, "b", 60, every=3)}
    found = compare(runners, "a", rounds=20, clock=clock, waits=lambda: waits)["b"]
    assert found.ratio == pytest.approx(2) and found.scatter == pytest.approx(1) and found.faster
    assert found.samples == 20 and found.calm == pytest.approx(2 / 3, abs=0.05)


def test_where_most_rounds_are_disturbed_what_is_left_is_no_sample():
    clock, waits = Clock(), Waits()
    long = disturbing(clock, waits, "a", 60, every=1)  # steady, and never undisturbed
    found = compare({"a": long, "b": clock.runner("b", 6)}, "a", rounds=10, clock=clock, waits=lambda: waits)["b"]
    assert found.scatter == pytest.approx(1) and found.ci95[0] > 1, "the rounds agree with each other"
    assert found.calm == 0 and found.samples == 20 and found.noisy and found.verdict == "cannot tell"
    assert "other processes took the cores in 100% of the rounds" in found.told


def test_a_disturbed_part_of_a_sample_is_left_out():
    clock, waits = Clock(), Waits()
    run = disturbing(clock, waits, "a", 1, every=5)
    found = compare({"a": run}, "a", rounds=10, min_sample_ms=9, clock=clock, waits=lambda: waits)["a"]
    assert found.p50_ms == pytest.approx(1) and found.calm == 1 and clock.calls.count("a") > 90


def test_a_disturbed_call_does_not_decide_how_many_make_a_sample():
    clock, waits = Clock(), Waits()
    tick = clock.runner("a", 1)

    def first_disturbed() -> None:
        tick()
        if len(clock.calls) == 1:
            clock.now += 0.02
            waits.now += 0.02

    compare({"a": first_disturbed}, "a", rounds=5, warmup=0, min_sample_ms=8, clock=clock, waits=lambda: waits)
    assert len(clock.calls) > 5 * 8


def test_time_that_the_host_took_supports_no_claim():
    clock = Clock()
    runners = {"a": clock.runner("a", 12), "b": clock.runner("b", 6)}
    for stolen, verdict in ((0.02, "faster"), (0.2, "cannot tell")):
        assert compare(runners, "a", rounds=5, clock=clock, waits=lambda s=stolen: Waits(s))["b"].verdict == verdict


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this system keeps no account of waiting threads")
def test_a_thread_that_shares_its_core_is_seen_to_wait():
    allowed = os.sched_getaffinity(0)
    one = {min(allowed)}
    pinned = f"import os; os.sched_setaffinity(0, {one}); print(flush=True)\nwhile True: pass"
    other = subprocess.Popen([sys.executable, "-c", pinned], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        other.stdout.readline()
        os.sched_setaffinity(0, one)
        waits = machine.Waits()
        before, end = waits(), time.perf_counter() + 0.3
        while time.perf_counter() < end:
            pass
        assert 0.05 < waits() - before < 0.4
        assert machine.Waits(threads=10_000)() == 0  # they would wait for each other
    finally:
        os.sched_setaffinity(0, allowed)
        other.kill()
        other.communicate()


def test_what_the_host_took_is_the_mean_over_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told = tmp_path / "stat"
    monkeypatch.setattr(machine, "TIMES", told)
    told.write_text("cpu  0 0 0 0 0 0 0 40 0 0\ncpu0 0 0 0 0 0 0 0 40 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\nintr 7\n")
    waits = machine.Waits()
    ticks = os.sysconf("SC_CLK_TCK")
    told.write_text(f"cpu0 0 0 0 0 0 0 0 {40 + 20 * ticks} 0 0\ncpu1 0 0 0 0 0 0 0 0 0 0\n")
    time.sleep(0.01)
    assert waits.stolen > 10  # ten seconds a core, in far less time
    told.write_text("nothing")
    assert machine.Waits().stolen == 0
