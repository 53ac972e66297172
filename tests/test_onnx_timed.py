"""Files that are only timed: quickly written, and to the runtime the same as the real ones."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

import exporters
from compress.artifact import Artifact
from compress.graph.channel_affine import ChannelAffine
from compress.graph.trace.trace import trace
from compress.pipeline.latency_cache import _plain
from exporters import onnx_for_timing


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.act = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        self.two = nn.Conv2d(4, 4, 3, padding=1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.two(self.act(self.norm(self.one(x)))) + x)


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.gate, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(8, 4, 1)
        self.up, self.head = nn.Upsample(scale_factor=2), nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        x = x * self.gate(x.mean((2, 3), keepdim=True)).sigmoid()
        x = self.up(self.two(torch.cat([x, x - x.mean((2, 3), keepdim=True)], 1)))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 8).flatten(1))


PARTS = (
    *(
        ChannelAffine(8),
        nn.MaxPool2d(2),
        nn.AvgPool2d(3, 1, 1),
        nn.Identity(),
        nn.Dropout(),
        nn.ReLU(),
        nn.ReLU6(),
        nn.LeakyReLU(),
        nn.ELU(),
    ),
    *(nn.SiLU(), nn.Hardswish(), nn.Hardsigmoid(), nn.Sigmoid(), nn.Tanh()),
)


def chain() -> nn.Module:
    """Every part between two layers, as it stands in a piece that is timed."""
    layers = [[nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), part] for part in PARTS]
    return nn.Sequential(*(one for three in layers for one in three), nn.Conv2d(8, 4, 1))


NETS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "chain": (chain(), (8, 8, 8)),
    "residual": (Residual(), (4, 8, 8)),
    "tokens": (nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)), (6, 16)),
    "resnet18": (resnet18(num_classes=5), (3, 64, 64)),
    "gates and joins": (Gated(), (4, 8, 8)),
    "one axis": (nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3)), (4, 12)),
}


def run_as(path: Path) -> Counter[str]:
    """What ONNX Runtime makes of a file, by operations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    same = {"Flatten": "Reshape", "GlobalAveragePool": "ReduceMean"}
    nodes = onnx.load(options.optimized_model_filepath).graph.node
    # What only makes the sizes of a reshape, as some versions do in one file and not in the other, takes no time.
    sizes = {node.input[1] for node in nodes if node.op_type == "Reshape"}
    timed = [node for node in nodes if node.op_type != "Shape" and not sizes.intersection(node.output)]
    return Counter(same.get(node.op_type, node.op_type) for node in timed)


@pytest.mark.parametrize("name", NETS)
def test_the_runtime_makes_the_same_of_a_quick_file_as_of_the_real_one(name: str, tmp_path: Path):
    model, shape = NETS[name]
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    assert _plain(Artifact(trace(model.eval(), (x[:1],)), (x[:1],)))
    onnx_for_timing.write(model, (x[:1],), tmp_path / "quick.onnx", 18)
    exporters.export("onnx", model, (x,), tmp_path / "real.onnx", check_parity=False)
    assert run_as(tmp_path / "quick.onnx") == run_as(tmp_path / "real.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "quick.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found, model(x).numpy(), rtol=1e-3, atol=1e-4)


def test_other_models_are_timed_by_their_real_files():
    x = torch.zeros(1, 3, 32, 32)
    for model in (nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1)), nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU())):
        assert not _plain(Artifact(trace(model.eval(), (x,)), (x,)))


def test_what_the_older_exporter_refuses_the_newer_one_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, asked = torch.onnx.export, list[bool]()

    def refusing(*args: object, dynamo: bool, **more: object) -> object:
        asked.append(dynamo)
        if not dynamo:
            raise TypeError("there is no such exporter any more")
        return real(*args, dynamo=dynamo, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.onnx, "export", refusing)
    onnx_for_timing.write(nn.Linear(4, 2), (torch.zeros(1, 4),), tmp_path / "model.onnx", 18)
    assert asked == [False, True] and (tmp_path / "model.onnx").exists()
