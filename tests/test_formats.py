"""Formats of other runtimes: what each writes is the model there, or is near enough, or is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import exporters
from exporters import FIXED, ExportError, runtimes
from exporters.formats import FORMATS


def seeded(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 5)
    ).eval()  # fmt: skip


def needed(format: str) -> None:
    for name in FORMATS[format].needs:
        pytest.importorskip(name)


@pytest.mark.parametrize("format", [name for name in FORMATS if not name.startswith("onnx")])
@pytest.mark.filterwarnings("ignore")  # these packages warn of their own past
def test_a_file_is_the_model_in_its_runtime(format: str, net: nn.Module, tmp_path: Path):
    needed(format)
    samples, calibration = [(seeded(5, 3, 8, 8, seed=2),)], [(seeded(16, 3, 8, 8, seed=3),)]
    path = tmp_path / f"net{FORMATS[format].ending}"
    done = exporters.export(
        format,
        net,
        (seeded(1, 3, 8, 8),),
        path,
        samples=samples,
        calibration=calibration,
        batch=2,
        metadata={"compress.mean": "0.5"},
    )
    assert done.format == format and done.bytes >= path.stat().st_size and done.closeness is not None
    loaded = runtimes.load(FORMATS[format].runtime, path, threads=1)
    batch = 2 if format in FIXED else 3
    x = seeded(batch, 3, 8, 8, seed=4)
    y, z = net(x).detach().numpy(), loaded.run([x.numpy()])[0]
    error = float(np.linalg.norm(z - y) / np.linalg.norm(y))
    if FORMATS[format].lossy:
        assert done.parity is None and 1e-4 < done.closeness.relative < 0.05 and error < 0.1
    else:
        assert done.parity is not None and done.parity.worst_abs <= done.parity.tolerance and error < 1e-5
    assert done.closeness.samples == (6 if format in FIXED else 5 + 1)  # a fixed batch is filled up; else one is run alone
    if format in FIXED:
        with pytest.raises(ExportError, match=r"(ExecuTorch|LiteRT) cannot run .* on inputs of shape \(3, 3, 8, 8\)"):
            loaded.run([seeded(3, 3, 8, 8).numpy()])
        assert loaded.shapes == ((2, 3, 8, 8),)
    if loaded.shapes and format not in FIXED:
        assert loaded.shapes == ((0, 3, 8, 8),)


@pytest.mark.parametrize("format", sorted(exporters.LOSSY - {"onnx-fp16"}))
def test_eight_bits_without_calibration_are_refused(format: str, net: nn.Module, tmp_path: Path):
    needed(format)
    with pytest.raises(ExportError, match="Add --data"):
        exporters.export(format, net, (seeded(1, 3, 8, 8),), tmp_path / f"net{FORMATS[format].ending}")


def test_every_format_has_an_ending_and_a_runtime_of_its_own():
    endings = [format.ending for format in FORMATS.values()]
    assert len(set(endings)) == len(endings)
    for format in FORMATS.values():
        assert any(format.ending.endswith(ending) for ending in runtimes.RUNTIMES[format.runtime].opens)


def test_what_is_missing_is_named_with_the_line_that_installs_it(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(exporters.NEEDS, "pt2", ("torch", "no_such_package"))
    assert not exporters.available()["pt2"].works
    with pytest.raises(exporters.MissingBackend, match=r"no_such_package.*pip install torch"):
        exporters.require("pt2")


@pytest.mark.parametrize(
    "failure", ["ImportError('libtbb.so.12: cannot open shared object file')", "ValueError('dtype size changed')"]
)
def test_a_package_that_is_there_and_does_not_load_is_named_with_the_cause(
    failure: str, net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "broken_runtime.py").write_text(f"raise {failure}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(exporters.EXPORTERS, "openvino", "broken_runtime")
    monkeypatch.setitem(runtimes.RUNTIMES, "openvino", replace(runtimes.RUNTIMES["openvino"], module="broken_runtime"))
    for open_it in (
        lambda: exporters.export("openvino", net, (torch.zeros(1, 3, 8, 8),), tmp_path / "net.xml"),
        lambda: runtimes.module("openvino"),
    ):
        with pytest.raises(
            exporters.MissingBackend, match=r"'openvino'.*cannot be loaded.*(libtbb|dtype size).*afresh: pip install"
        ):
            open_it()
    assert not list(tmp_path.glob("net*"))


@pytest.mark.parametrize("runtime", sorted(runtimes.RUNTIMES))
def test_a_file_that_is_no_model_is_not_opened(runtime: str, tmp_path: Path):
    pytest.importorskip({"ort": "onnxruntime", "litert": "ai_edge_litert"}.get(runtime, runtime))
    path = tmp_path / f"page{runtimes.RUNTIMES[runtime].opens[0]}"
    path.write_text("<html>")
    with pytest.raises(ExportError, match=r"does not open .*page"):
        runtimes.load(runtime, path)


def test_an_unknown_runtime_and_a_missing_file_are_refused(tmp_path: Path):
    with pytest.raises(ExportError, match="known are ort, openvino"):
        runtimes.load("caffe", tmp_path / "x")
    with pytest.raises(ExportError, match="There is no file"):
        runtimes.load("ort", tmp_path / "x.onnx")
