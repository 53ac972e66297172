"""`compress doctor`: versions, devices, exporters, and what to install for the rest."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

import exporters
from compress import __version__
from compress.errors import extra
from compress.measure.runtime import usable_cores

PACKAGES = ("torch", "torchvision", "numpy", "onnx", "onnxscript", "onnxruntime", "safetensors")
OPTIONAL = {"scikit-learn": extra("demo"), "timm": extra("timm")}


@dataclass(frozen=True)
class Check:
    """One thing that was looked for; `remedy` says what to do where it is missing."""

    what: str
    works: bool
    found: str
    remedy: str = ""


def doctor() -> list[Check]:
    """What works here. Nothing is changed and nothing is downloaded."""
    return [
        Check("compress", True, __version__),
        Check("Python", True, platform.python_version()),
        *(package(name, f"pip install {name}") for name in PACKAGES),
        *(package(name, remedy) for name, remedy in OPTIONAL.items()),
        Check("device cpu", True, f"{usable_cores()} cores, {torch.get_num_threads()} torch threads"),
        cuda(),
        cuda_runtime(),
        mps(),
        *(
            Check(f"export {name}", found.works, found.detail if found.works else "missing", "" if found.works else found.install)
            for name, found in exporters.available().items()
        ),
    ]


def package(name: str, remedy: str) -> Check:
    """Whether a package is installed."""
    try:
        return Check(name, True, version(name))
    except PackageNotFoundError:
        return Check(name, False, "not installed", remedy)


def cuda() -> Check:
    """CUDA as torch sees it."""
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Check("device cuda", True, names)
    built = torch.version.cuda
    remedy = "run where 'nvidia-smi' lists a device" if built else "install a build of torch with CUDA"
    return Check("device cuda", False, f"no device (torch is built for CUDA {built})" if built else "torch without CUDA", remedy)


def cuda_runtime() -> Check:
    """CUDA as ONNX Runtime sees it: the runtime `ort-cuda`."""
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers() and torch.cuda.is_available():
        return Check("runtime ort-cuda", True, f"onnxruntime {onnxruntime.__version__}")
    return Check("runtime ort-cuda", False, "not usable", f"a CUDA device, and {extra('cuda')}")


def mps() -> Check:
    """Apple's GPU."""
    found = torch.backends.mps.is_available()
    return Check("device mps", found, "available" if found else "no device", "" if found else "a Mac with Apple silicon")
