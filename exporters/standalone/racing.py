"""Models timed in turns, each in a process of its own.

    parent:   A runs a round | B runs a round | B | A | ...      the others wait, and use no core

A process of its own keeps runtimes, their thread pools and their memory apart, and makes peak memory and loading time those of
one file. Calls are timed inside the process, so the way there costs nothing. Orders and answers are lines of JSON:

    {"do": "load", "path": ..., "threads": ..., "batch": ..., "cpus": [...], ...}
    {"do": "calls", "count": n}        -> {"seconds": [...], "waited": [...], ...}    one entry per call
    {"do": "end"}                      -> {"peak_bytes": ...}

Needs Python 3.8 or newer, and numpy in the processes that load.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import os
import random
import resource
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__:
    from exporters.standalone import machine, tied
else:
    import machine  # type: ignore[no-redef,import-not-found]
    import tied  # type: ignore[no-redef,import-not-found]

SECONDS_TO_LOAD = 300.0
ROUND_MS = 20.0
"""A round repeats its call until it lasts about that long."""
MOST_CALLS = 200
LEAST_HELD = 0.9
"""Of its time a process has to have had a core. Below that others took it, which hits long calls and not the short ones that fit
between two interruptions: the ratio of a small model to a large one then comes out many times too good, and steadily so."""
WARM_UP = 5


@dataclasses.dataclass
class Measured:
    """What one model told.

    Attributes:
        loaded: what loading took (`load_s`, `first_s`), the runtime's `version`, and its `threads`.
        rounds: seconds of every undisturbed call but the first, round by round, the same rounds for every model that runs.
        calm: share of the rounds that were undisturbed (`machine.Waits`); less than half: nothing may be claimed.
        joules: of every round, of all processor packages; None where the machine does not tell.
        processor_s: processor time of all calls that were timed.
        wall_s: time of the same calls.
        calls: in a round, with the first.
        peak_bytes: most memory that the process held.
        failed: why there is nothing of all that.
    """

    loaded: dict[str, Any] = dataclasses.field(default_factory=lambda: {})
    rounds: list[list[float]] = dataclasses.field(default_factory=lambda: [])
    calm: float = 1.0
    joules: list[float | None] = dataclasses.field(default_factory=lambda: [])
    processor_s: float = 0.0
    wall_s: float = 0.0
    calls: int = 1
    peak_bytes: int | None = None
    failed: str | None = None

    @property
    def held(self) -> float:
        """Share of the time of its calls in which the process had at least one core."""
        return min(self.processor_s / self.wall_s, 1.0) if self.wall_s else 1.0


@dataclasses.dataclass
class Timed:
    """A process that has one model open, and what it has told so far."""

    process: subprocess.Popen[bytes]
    complaints: Any = None  # a file
    measured: Measured = dataclasses.field(default_factory=Measured)

    def ask(self, order: Mapping[str, Any], seconds: float = SECONDS_TO_LOAD) -> dict[str, Any]:
        """Send an order and wait for the answer. A process that fails, ends or is silent says why in `failed`, and answers {}."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended: the empty answer below says so
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        line = self.process.stdout.readline() if ready else b""
        if not ready:
            self.measured.failed = f"no answer for {seconds:g} s"
        elif not line:
            self.measured.failed = f"the process ended ({self.process.wait()}{self.last_words()})"
        else:
            answer: dict[str, Any] = json.loads(line)
            self.measured.failed = answer.pop("error", None)
            if self.measured.failed is None:
                return answer
        self.stop()
        return {}

    def last_words(self) -> str:
        """The last line that the process complained with."""
        if self.complaints is None:
            return ""
        self.complaints.seek(0)
        lines = self.complaints.read().decode(errors="replace").split("\n")
        return next((f": {line.strip()[:200]}" for line in reversed(lines) if line.strip()), "")

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def race(
    orders: Sequence[Mapping[str, Any]],
    command: Sequence[str],
    rounds: int = 40,
    budget_s: float = 60.0,
    seed: int = 0,
    environment: Mapping[str, str] | None = None,
) -> list[Measured]:
    """Time models in turns.

    Args:
        orders: what each process is told to load.
        command: starts a process that serves (see `serve`).
        rounds: of each model; up to twice as many are tried where others disturb them.
        budget_s: no further round is started once that time is used; at least five are.
        seed: of the order within rounds.
        environment: of the processes; None hands on this one's.
    """
    timed: list[Timed] = []
    with contextlib.ExitStack() as stack:
        for _ in orders:
            complaints = stack.enter_context(tempfile.TemporaryFile())
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": complaints}
            process = subprocess.Popen(tied.tied(command), env=environment, **pipes)  # type: ignore[call-overload]
            timed.append(Timed(process, complaints))
            stack.callback(timed[-1].stop)
        for one, order in zip(timed, orders):
            _warm(one, order)
        _rounds([one for one in timed if one.measured.failed is None], rounds, budget_s, seed)
        for one in timed:
            if one.measured.failed is None:
                one.measured.peak_bytes = one.ask({"do": "end"}).get("peak_bytes")
    return [one.measured for one in timed]


def _warm(one: Timed, order: Mapping[str, Any]) -> None:
    """Load, run a few times, and find how many calls make a round."""
    one.measured.loaded = one.ask({"do": "load", **order})
    seconds = [] if one.measured.failed else one.ask({"do": "calls", "count": WARM_UP}).get("seconds", [])
    if seconds:
        call_s = max(statistics.median(seconds), 1e-7)
        calls = min(max(round(ROUND_MS / 1e3 / call_s), machine.warming(call_s)), MOST_CALLS)
        one.measured.calls = calls if calls == 1 else calls + 1


def _rounds(running: Sequence[Timed], rounds: int, budget_s: float, seed: int) -> None:
    drawn, waits = random.Random(seed), machine.Waits()
    timed: machine.Rounds[list[list[float]]] = machine.Rounds(max(rounds, machine.LEAST_ROUNDS), budget_s)
    while timed.lacking:
        found = {id(one): _round(one) for one in drawn.sample(running, len(running)) if one.measured.failed is None}
        # What has failed meanwhile disturbs nobody.
        alive = all(calm for one in running if one.measured.failed is None for _, calm in [found[id(one)]])
        timed.add([found.get(id(one), ([], True))[0] for one in running], alive)
    share, kept = timed.told(waits.stolen)
    for number, one in enumerate(running):
        one.measured.rounds, one.measured.calm = [seconds[number] for seconds in kept if seconds[number]], share


def _round(one: Timed) -> tuple[list[float], bool]:
    """Seconds of the calls that had a core, and whether these are at least half; all calls where none had.

    Of several the first is not counted: another model has left its weights in the caches.
    """
    measured, energy = one.measured, machine.joules()
    answer = one.ask({"do": "calls", "count": measured.calls})
    seconds = answer.get("seconds", [])
    measured.wall_s += sum(seconds)
    measured.processor_s += answer.get("processor_s", 0.0)
    measured.joules.append(machine.spent(energy, machine.joules()))
    waited = answer.get("waited", [0.0] * len(seconds))
    if len(seconds) > 1:
        seconds, waited = seconds[1:], waited[1:]
    calm = [lasted for lasted, lost in zip(seconds, waited) if lost <= machine.MOST_WAITED * lasted]
    return calm or seconds, 2 * len(calm) >= len(seconds)


def serve(
    load: Callable[[dict[str, Any]], tuple[Callable[[], object], dict[str, Any]]], refusals: tuple[type[Exception], ...]
) -> None:
    """Answer orders until the end: the other side of `race`. `refusals` are answered, any other error ends the process."""
    # What libraries print must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    call: Callable[[], object] | None = None
    waits = machine.Waits()
    for line in sys.stdin:
        order = json.loads(line)
        answer: dict[str, Any]
        try:
            if order["do"] == "load":
                call, answer = load(order)
                waits = machine.Waits(answer.get("threads", 1))
            elif order["do"] == "calls" and call is not None:
                before = time.process_time()
                seconds, waited = timed(call, int(order["count"]), waits)
                answer = {"seconds": seconds, "waited": waited, "processor_s": time.process_time() - before}
            else:
                answer = {"peak_bytes": peak_bytes()}
        except refusals as error:
            answer = {"error": str(error) or type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)
        if order["do"] == "end":
            return


def timed(call: Callable[[], object], count: int, waited: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Seconds of each of `count` calls, and for how many of these threads waited for a core."""
    seconds: list[float] = []
    lost: list[float] = []
    for _ in range(count):
        before = waited()
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
        lost.append(waited() - before)
    return seconds, lost


def peak_bytes() -> int:
    """Most memory that was resident at once. Linux keeps it with the program; what getrusage tells there began before that."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def prepared(
    order: Mapping[str, Any], opened: Callable[[], tuple[Callable[[list[Any]], object], Any, str]]
) -> tuple[Callable[[], object], dict[str, Any]]:
    """A call on random inputs, and what it took to get there.

    Args:
        order: batch, path and cores.
        opened: loads the model and gives it as a function of arrays, with the shapes of its inputs and the runtime's version.
    """
    if order.get("cpus"):
        os.sched_setaffinity(0, order["cpus"])
    started = time.perf_counter()
    run, shapes, version = opened()
    loaded = time.perf_counter()
    arrays = inputs(shapes, order["batch"], order["path"])
    begun = time.perf_counter()
    run(arrays)
    ended = time.perf_counter()
    gc.collect()
    gc.disable()  # a collection inside one call would be charged to it
    threads = order["threads"] or machine.cores()
    return lambda: run(arrays), {"load_s": loaded - started, "first_s": ended - begun, "version": version, "threads": threads}


def inputs(shapes: Sequence[Sequence[int]], batch: int, path: str) -> list[Any]:
    """Random inputs of the batch size to be timed; a size of 0 is free.

    Raises:
        ValueError: the file takes another batch size, leaves more than the batch open, or does not say its input size.
    """
    import numpy

    if not shapes:
        raise ValueError(f"{path} does not say its input size. Give --input-shape.")
    for shape in shapes:
        if not shape or shape[0] not in (0, batch):
            told = f"a batch of {shape[0]} only" if shape else "no batch"
            raise ValueError(f"{path} takes {told}, and {batch} was asked for. Export it with --batch {batch}.")
        if min(shape[1:], default=1) < 1:
            raise ValueError(f"{path} has an input of no fixed shape beside its batch. Export the model with fixed sizes.")
    drawn = numpy.random.default_rng(0)
    return [drawn.standard_normal((batch, *shape[1:]), dtype=numpy.float32) for shape in shapes]
