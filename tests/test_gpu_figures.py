"""What a GPU tells of itself: a management library that stands in for NVIDIA's, and torch's events where there is no device."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from compress.measure import gpu
from exporters.standalone import machine


class Refusal(Exception):
    pass


def library(energy: int | None = 5000, present: bool = True) -> ModuleType:
    """As pynvml is used: open, one handle, four questions, close."""
    made, open_ = ModuleType("pynvml"), [0]

    def start() -> None:
        if not present:
            raise Refusal
        open_[0] += 1

    def spent(_: object) -> int:
        if energy is None:
            raise Refusal
        return energy

    def asked(value: object) -> object:
        def answer(*_: object) -> object:
            assert open_[0] == 1, "asked while it is closed"
            return value

        return answer

    made.__dict__.update(
        NVMLError=Refusal, NVML_CLOCK_SM=1, NVML_TEMPERATURE_GPU=0, nvmlInit=start,
        nvmlShutdown=lambda: open_.__setitem__(0, open_[0] - 1), nvmlDeviceGetHandleByIndex=asked("first"),
        nvmlDeviceGetClockInfo=asked(1410), nvmlDeviceGetTemperature=asked(55),
        nvmlDeviceGetMemoryInfo=asked(SimpleNamespace(used=7_000_000)), nvmlDeviceGetTotalEnergyConsumption=spent, open_=open_,
    )  # fmt: skip
    return made


def test_clock_temperature_memory_and_energy_come_from_the_library(monkeypatch: pytest.MonkeyPatch):
    made = library()
    monkeypatch.setitem(sys.modules, "pynvml", made)
    assert machine.gpu() == machine.Gpu(1410.0, 55.0, 7_000_000, 5.0) and made.open_ == [0]
    monkeypatch.setitem(sys.modules, "pynvml", library(energy=None))
    assert machine.gpu() == machine.Gpu(1410.0, 55.0, 7_000_000, None)


def test_a_machine_without_a_gpu_or_without_the_library_tells_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pynvml", library(present=False))
    assert machine.gpu() is None
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert machine.gpu() is None and gpu.beside(None, None) == {}


def test_memory_is_what_opening_took_and_time_is_the_devices(monkeypatch: pytest.MonkeyPatch):
    used, called = iter((100, 175)), list[str]()
    monkeypatch.setattr(machine, "gpu", lambda: machine.Gpu(1.0, 2.0, next(used), None))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 60)
    clock = iter(range(1000))

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = next(clock)

        def elapsed_time(self, end: Event) -> float:
            return float(end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    call, taken = gpu.opened(lambda: lambda: called.append("x"))
    assert taken == gpu.Taken(75, 60) and called == ["x"]
    assert gpu.device_ms(call, 3) == 1.0 and called == ["x"] * 4
    before, after = machine.Gpu(1.0, 2.0, 0, None), machine.Gpu(3.0, 4.0, 0, None)
    assert gpu.beside(before, after) == {"gpu_mhz": (1.0, 3.0), "gpu_celsius": (2.0, 4.0)}


def test_without_cuda_nothing_is_called_and_nothing_claimed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _, taken = gpu.opened(lambda: lambda: pytest.fail("not on a processor"))
    assert taken == gpu.Taken(None, None) and gpu.device_ms(lambda: None) is None
