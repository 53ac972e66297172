"""What the machine was doing: clocks, temperature, energy counters of processors and GPU. None where it does not tell."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SYSTEM = Path("/sys")
PROCESSOR = Path("/proc/cpuinfo")


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


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
