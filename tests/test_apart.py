"""An export in a process of its own: the same file, and a crash, a hang or hunger ends only that process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import exporters
from exporters import ExportError, MissingBackend, ParityError, isolated


class Tracer(torch.fx.Tracer):
    """One that nobody else can start."""

    def __init__(self, *needed: object) -> None:
        super().__init__()
        assert needed

    @classmethod
    def traced(cls, net: nn.Module) -> torch.fx.GraphModule:
        return torch.fx.GraphModule(net, cls("a").trace(net))


class Dies(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        os.abort()


def images() -> list[tuple[Tensor, ...]]:
    return [(torch.randn(8, 4, generator=torch.Generator().manual_seed(n)),) for n in (1, 2)]


def test_the_file_and_its_record_are_those_of_this_process(tmp_path: Path):
    torch.manual_seed(0)
    net = Tracer.traced(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval())
    options = {"samples": images(), "calibration": images(), "metadata": {"a": "b"}}
    there = isolated.export("onnx-int8", net, images()[0], tmp_path / "there.onnx", **options)
    here = exporters.export("onnx-int8", net, images()[0], tmp_path / "here.onnx", **options)
    assert there.sha256 == here.sha256 and there.closeness == here.closeness and there.path.exists()
    assert type(there.kept_float) is tuple


def test_a_crash_is_an_error_and_leaves_nothing(tmp_path: Path):
    with pytest.raises(ExportError, match=r"The export to onnx crashed \(SIGABRT\)"):
        isolated.export("onnx", Dies(), images()[0], tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("limits", "part"),
    [({"seconds": 0.3}, "took longer than 0.3 s"), ({"memory": 20_000_000}, "more than the 0.0 GB that it may")],
)
def test_time_and_memory_end(tmp_path: Path, limits: dict[str, float], part: str):
    with pytest.raises(ExportError, match=part):
        isolated.export("onnx", nn.Linear(4, 2), images()[0], tmp_path / "net.onnx", **limits)  # type: ignore[arg-type]


def test_a_model_whose_class_no_other_process_knows_is_refused(tmp_path: Path):
    class Local(nn.Module):
        pass

    with pytest.raises(ExportError, match="cannot be handed to the process"):
        isolated.export("onnx", Local(), images()[0], tmp_path / "net.onnx")


@pytest.mark.parametrize(
    "error",
    [
        ParityError(0.5, 0.1, "output"),
        MissingBackend("onnx", "onnxscript", ""),
        MissingBackend("onnx", "onnx", "", "ImportError: libonnx.so: no such file"),
        ExportError("found"),
    ],
)
def test_errors_come_back_as_the_kind_that_they_were(tmp_path: Path, error: ExportError):
    again = isolated._error("onnx", isolated.told(error))
    assert type(again) is type(error) and str(again).startswith(str(error).partition("pip")[0])
    if isinstance(error, ParityError) and isinstance(again, ParityError):
        assert (again.worst, again.tolerance) == (error.worst, error.tolerance)
