"""Runners: the same model gives the same numbers in every runtime, and what is missing is said."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import exporters
from compress.commands.bench import bench
from compress.errors import BadInput
from compress.measure.runtime import choose, runner, threads_of, usable_cores
from compress.pipeline.latency_cache import LatencyCache
from compress.recipe import make


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()


@pytest.fixture(scope="module")
def file(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runtime") / "net.onnx"
    exporters.export("onnx", net, (torch.zeros(2, 3, 8, 8),), path)
    return path


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_many_times_more_threads_than_cores_are_refused(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("compress.measure.runtime.usable_cores", lambda: 2)
    assert [threads_of(asked) for asked in (0, 1, 16)] == [2, 1, 16]
    races = LatencyCache(make(model="net", data="digits", target="macs=0.5", threads=17), torch.device("cpu"))
    for asks in (lambda: threads_of(17), lambda: bench(file, threads="1,17"), lambda: races.runtime):
        with pytest.raises(BadInput, match=r"--threads is 17, and here 2 cores are usable. Give 2"):
            asks()


def test_onnx_runtime_and_torch_give_the_same_outputs(net: nn.Module, file: Path, images: Tensor):
    ours = runner("torch", net, (images,), threads=1)()
    theirs = runner("ort", file, (images,), threads=1)()
    assert isinstance(ours, Tensor) and isinstance(theirs, list)
    assert not ours.requires_grad
    np.testing.assert_allclose(theirs[0], ours.numpy(), atol=1e-5)  # fp32 sums of 144 terms of size 1


def test_the_torch_runner_leaves_the_number_of_threads(net: nn.Module, images: Tensor):
    before = torch.get_num_threads()
    runner("torch", net, (images,), threads=before + 1)()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("runtime", "close"), [("openvino", 1e-5), ("openvino-int8", 0.1)])
def test_openvino_gives_the_same_outputs_or_says_what_it_lacks(file: Path, images: Tensor, runtime: str, close: float):
    missing = [name for name in exporters.NEEDS[runtime] if importlib.util.find_spec(name) is None]
    if missing:
        with pytest.raises(BadInput, match=rf"The runtime {runtime} was asked for, but .*pip install"):
            choose(runtime)
        return
    theirs, ours = runner(runtime, file, (images,), threads=1)(), runner("ort", file, (images,), threads=1)()
    assert isinstance(ours, list) and isinstance(theirs, list)
    np.testing.assert_allclose(theirs[0], ours[0], atol=close * np.abs(ours[0]).max())


def test_a_missing_file_is_bad_input(tmp_path: Path, images: Tensor):
    with pytest.raises(BadInput, match="no ONNX file at"):
        runner("ort", tmp_path / "none.onnx", (images,))


def test_a_file_that_is_no_model_is_bad_input(tmp_path: Path, images: Tensor):
    (tmp_path / "page.onnx").write_text("<html>")
    with pytest.raises(BadInput, match="does not open"):
        runner("ort", tmp_path / "page.onnx", (images,))


def test_an_unknown_runtime_is_bad_input():
    with pytest.raises(BadInput, match="known are auto, ort, ort-cuda, torch"):
        choose("tensorrt")


def test_cuda_that_is_absent_is_bad_input_and_auto_takes_the_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BadInput, match=r"no CUDA device.*--runtime ort"):
        choose("ort-cuda")
    assert choose("auto") == "ort"


def test_onnx_runtime_without_cuda_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    import onnxruntime

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BadInput, match="pip install onnxruntime-gpu"):
        choose("ort-cuda")


def test_a_path_for_torch_is_refused(file: Path, images: Tensor):
    with pytest.raises(TypeError, match="torch takes a module"):
        runner("torch", file, (images,))


def test_there_is_at_least_one_core():
    assert usable_cores() >= 1


@pytest.mark.gpu
def test_onnx_runtime_on_cuda_gives_the_outputs_of_the_cpu(file: Path, images: Tensor):
    on_device = runner("ort-cuda", file, (images,))()
    on_cpu = runner("ort", file, (images,))()
    np.testing.assert_allclose(on_device[0].numpy(), on_cpu[0], atol=1e-3)  # type: ignore[index]  # TF32 convolutions
