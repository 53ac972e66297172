"""The machine and the versions behind the figures of a report."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from compress import __version__
from compress.measure.runtime import usable_cores
from compress.report.records import Environment


def environment() -> Environment:
    """As found now. Holds no name of a person or a machine."""
    return Environment(
        compress=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        onnx=_version("onnx"),
        onnxruntime=_version("onnxruntime") or _version("onnxruntime-gpu"),
        os=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=_cpu(),
        cores=usable_cores(),
        gpu=torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    """Model name of the processor; `platform` only knows the architecture on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine() or "unknown")
