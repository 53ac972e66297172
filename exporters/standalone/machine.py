"""What the machine was doing: clocks, temperature, energy counters of processors and GPU. None where it does not tell."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

SYSTEM = Path("/sys")
PROCESSOR = Path("/proc/cpuinfo")
THREADS = Path("/proc/self/task")
TIMES = Path("/proc/stat")

MOST_WAITED = 0.02
"""Of its time a call may have waited for a core. On a quiet machine 99 of 100 wait less, beside a busy process most wait more."""
MOST_STOLEN = 0.05
"""Of its time a virtual machine may have lost to others of its host."""
LEAST_CALM = 0.5
"""Of all rounds have to be undisturbed. Where fewer are, they are a choice of the luckiest, and no sample."""
LEAST_ROUNDS = 5
LEAST_CALLS, WARMING_S = 5, 0.05
"""Calls that count, of a model whose turn it is, and the time that these may take; then one call fills the caches by itself."""

Round = TypeVar("Round")


@dataclass(frozen=True)
class State:
    """At one moment: mean clock of the cores in MHz, and the hottest sensor in degrees Celsius."""

    mhz: float | None
    celsius: float | None


@dataclass(frozen=True)
class Gpu:
    """The first GPU at one moment, as NVIDIA's management library tells it.

    Attributes:
        mhz: clock of its multiprocessors.
        celsius: temperature of the chip.
        used_bytes: of its memory, by whoever.
        joules: spent since the driver was loaded; None where it does not count.
    """

    mhz: float
    celsius: float
    used_bytes: int
    joules: float | None


def warming(call_s: float) -> int:
    """How many calls of so many seconds count at least, after one that finds the caches full of another model's weights."""
    return min(max(int(WARMING_S / max(call_s, 1e-9)), 1), LEAST_CALLS)


def gpu() -> Gpu | None:
    """As it is now; None where there is no NVIDIA GPU, or no `pynvml` to ask it (pip install nvidia-ml-py)."""
    try:
        import pynvml  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    told: Any = pynvml
    try:
        told.nvmlInit()
    except told.NVMLError:
        return None
    try:
        first = told.nvmlDeviceGetHandleByIndex(0)
        mhz = told.nvmlDeviceGetClockInfo(first, told.NVML_CLOCK_SM)
        celsius = told.nvmlDeviceGetTemperature(first, told.NVML_TEMPERATURE_GPU)
        used = told.nvmlDeviceGetMemoryInfo(first).used
        try:
            joules = told.nvmlDeviceGetTotalEnergyConsumption(first) / 1e3
        except told.NVMLError:  # before Volta
            joules = None
        return Gpu(float(mhz), float(celsius), int(used), joules)
    except told.NVMLError:
        return None
    finally:
        told.nvmlShutdown()


def state() -> State:
    """As it is now."""
    return State(_mhz(), _celsius())


def joules() -> float | None:
    """Energy that all processor packages have used up to now, by RAPL; only differences mean something.

    A counter starts again at its maximum, after minutes to hours: `spent` sees to that.
    """
    read = [_number(zone / "energy_uj") for zone in _packages()]
    known = [value for value in read if value is not None]
    return sum(known) / 1e6 if known else None


def spent(before: float | None, after: float | None) -> float | None:
    """Joules between two readings; None where a counter started again in between, or there is none."""
    return None if before is None or after is None or after < before else after - before


class Waits:
    """How long threads of this process could have run and had no core, because others had it: Linux's own account.

    A call that had to wait is not slow, it was disturbed. Systems that keep no such account always answer 0.

    Args:
        threads: that do the work. More of them than cores wait for each other, which says nothing of others: always 0.
    """

    def __init__(self, threads: int = 1) -> None:
        self._began, self._stolen = time.perf_counter(), _stolen()
        # Opened once, where all threads are there: a reading must cost next to nothing between two calls.
        self._files = [] if threads > cores() else [f for f in map(_opened, THREADS.glob("*/schedstat")) if f is not None]
        self._last = [0.0] * len(self._files)

    def __call__(self) -> float:
        """Seconds so far, of all threads together."""
        for number, file in enumerate(self._files):
            # The file of a thread that has ended cannot be read: it waits no more.
            with contextlib.suppress(OSError, IndexError, ValueError):
                self._last[number] = 1e-9 * int(os.pread(file, 64, 0).split()[1])
        return sum(self._last)

    @property
    def stolen(self) -> float:
        """Share of this machine's time since the beginning that its host gave to other machines."""
        now, seconds = _stolen(), time.perf_counter() - self._began
        return max(now - self._stolen, 0.0) / max(seconds, 1e-9)

    def __del__(self) -> None:
        for file in getattr(self, "_files", ()):
            os.close(file)


class Rounds(Generic[Round]):
    """Rounds of a timing: as many undisturbed ones as are wanted, of at most twice as many.

    Once the time is used up none is begun, but for the least that there have to be.
    """

    def __init__(
        self, wanted: int, budget_s: float, least: int = LEAST_ROUNDS, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._wanted, self._least, self._clock = wanted, least, clock
        self._ends = clock() + budget_s
        self._undisturbed: list[Round] = []
        self._disturbed: list[Round] = []

    @property
    def lacking(self) -> bool:
        """Whether another one has to be timed."""
        tried = len(self._undisturbed) + len(self._disturbed)
        if len(self._undisturbed) >= self._wanted or tried >= 2 * self._wanted:
            return False
        return tried < self._least or self._clock() < self._ends

    def add(self, found: Round, undisturbed: bool) -> None:
        """One that was timed."""
        (self._undisturbed if undisturbed else self._disturbed).append(found)

    def told(self, stolen: float) -> tuple[float, list[Round]]:
        """Share of the rounds that say something, and these; where they are too few, 0 or little, and all that there are.

        Args:
            stolen: share of the time that the host took.
        """
        share = len(self._undisturbed) / max(len(self._undisturbed) + len(self._disturbed), 1)
        if stolen > MOST_STOLEN or len(self._undisturbed) < LEAST_ROUNDS:
            share = 0.0
        return share, self._undisturbed if share >= LEAST_CALM else [*self._undisturbed, *self._disturbed]


MOST_OF_A_CORE = 8
"""Threads; with many times more than there are cores, these do nothing but change between them."""


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment() -> dict[str, Any]:
    """What ran this. Holds no name of a person or a machine."""
    versions = {}
    for name in ("numpy", "onnxruntime"):
        try:
            # A missing package is told as such; verifying hashes needs neither.
            versions[name] = getattr(__import__(name), "__version__", "unknown")
        except ImportError:
            versions[name] = None
    cpu = ""
    with contextlib.suppress(OSError):
        told = Path("/proc/cpuinfo").read_text().replace("\t", "").splitlines()
        facts = dict(line.split(": ", 1) for line in told if ": " in line)
        cpu = facts.get("model name") or facts.get("Model") or facts.get("Hardware") or ""  # the latter two on ARM boards
    cpu = cpu or platform.processor() or platform.machine()
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return {"python": platform.python_version(), "os": system, "cpu": cpu, "cores": cores(), **versions}


def _opened(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:  # a thread that has ended meanwhile
        return None


def _stolen() -> float:
    """Seconds that the host took from a core of this machine, the mean over its cores; 0 where it does not tell."""
    try:
        lines = TIMES.read_text().splitlines()
        ticks = [int(line.split()[8]) for line in lines if line.startswith("cpu") and line[3:4].isdigit()]
        return sum(ticks) / len(ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError, ZeroDivisionError):
        return 0.0


def _packages() -> list[Path]:
    """Zones of whole processor packages: their parts have zones of their own, with a second colon in the name."""
    return [zone for zone in (SYSTEM / "class/powercap").glob("intel-rapl:*") if zone.name.count(":") == 1]


def _mhz() -> float | None:
    told = [_number(path) for path in SYSTEM.glob("devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")]
    clocks = [value / 1e3 for value in told if value is not None]
    if not clocks:
        try:
            lines = PROCESSOR.read_text().splitlines()
        except OSError:
            return None
        clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return sum(clocks) / len(clocks) if clocks else None


def _celsius() -> float | None:
    told = [_number(path) for path in SYSTEM.glob("class/thermal/thermal_zone*/temp")]
    return max((value / 1e3 for value in told if value is not None), default=None)


def _number(path: Path) -> float | None:
    try:
        return float(path.read_text())
    except (OSError, ValueError):
        return None
