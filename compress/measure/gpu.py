"""What a model takes of a GPU: memory by the driver's count and by torch's, and time by the device's own events.

None of it where there is no CUDA device. **Not verified on one.**
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from exporters.standalone import machine

CALLS = 20
Call = Callable[[], object]


@dataclass(frozen=True)
class Taken:
    """Bytes of the device's memory: by the driver, which sees every runtime, and by torch's allocator at its peak."""

    driver: int | None
    allocated: int | None


def opened(opening: Callable[[], Call]) -> tuple[Call, Taken]:
    """Open a model and call it once; what that took of the device's memory."""
    cuda, before = torch.cuda.is_available(), machine.gpu()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    call = opening()
    if not cuda:
        return call, Taken(None, None)
    call()
    torch.cuda.synchronize()
    after = machine.gpu()
    driver = None if before is None or after is None else max(after.used_bytes - before.used_bytes, 0)
    return call, Taken(driver, torch.cuda.max_memory_allocated() or None)


def device_ms(call: Call, calls: int = CALLS) -> float | None:
    """Median milliseconds of a call between two events of torch's current queue."""
    if not torch.cuda.is_available():
        return None
    spent: list[float] = []
    for _ in range(calls):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        spent.append(start.elapsed_time(end))
    return statistics.median(spent)


def beside(before: machine.Gpu | None, after: machine.Gpu | None) -> dict[str, Any]:
    """Clock and temperature before and after, as `Figures` has them."""
    if before is None or after is None:
        return {}
    return {"gpu_mhz": (before.mhz, after.mhz), "gpu_celsius": (before.celsius, after.celsius)}
