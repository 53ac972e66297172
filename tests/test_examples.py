"""The examples beyond classification: each from a training to an ONNX file; a detector's boxes, removed and masked."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from oracles import random_edits
from torch import Tensor, nn

from compress.checkpoint.load import load
from compress.graph.channels.solve import solve
from compress.graph.surgery.remove import keep, mask
from compress.graph.trace.trace import trace

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def told(net: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
    """The net as if it had learnt: fresh weights let all boxes be the anchors, and all scores the same."""
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None  # statistics of what it sees, at once
    with torch.no_grad():
        net.train()(*inputs)
        for head in (net.head.classification_head, net.head.regression_head):
            for scale in head.module_list:
                scale[1].weight.mul_(20)
    return net.eval()


def test_a_detector_finds_the_same_boxes_removed_and_masked():
    torch.manual_seed(0)
    detection = example("detection")
    inputs = (torch.randn(4, 3, detection.SIZE, detection.SIZE),)
    module = trace(told(detection.net(), inputs), inputs)
    assert module.meta["opaque"] == {}
    channels = solve(module, inputs)
    free = [g for g in channels.groups if not g.frozen]
    assert len(free) > 30 and all("output" in g.frozen for g in channels.groups if g.frozen and g.name.startswith("head"))
    edits = random_edits(free, 0)
    with torch.no_grad():
        removed, masked = (detection.boxes(made(module, channels, edits)(*inputs)) for made in (keep, mask))
        dense = detection.boxes(module(*inputs))
    for one, other, before in zip(removed, masked, dense, strict=True):
        assert len(one["labels"]) > 10 and torch.equal(one["labels"], other["labels"])
        assert (one["boxes"] - other["boxes"]).abs().max() < 0.01  # pixels: the order of float32 sums
        assert one["boxes"].shape != before["boxes"].shape or (one["boxes"] - before["boxes"]).abs().max() > 0.1


def test_the_targets_of_the_detection_example_are_the_boxes_that_it_draws():
    detection = example("detection")
    arrays = detection.data(count=5)
    wanted = torch.from_numpy(arrays["y_train"]).unflatten(1, (-1, 4 + detection.CLASSES))
    sure = torch.cat([wanted[..., :4], 20 * wanted[..., 4:]], 2)
    assert detection.found(sure, wanted.flatten(1)) == 1 and detection.found(-sure, wanted.flatten(1)) < 1
    assert float(detection.loss(sure, wanted.flatten(1))) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "epochs", "metric", "reached"),
    [("characters", 1.5, "perplexity", 14), ("detection", 4, "found", 0.25), ("segmentation", 6, "miou", 0.5)],
)
def test_an_example_runs_from_a_training_to_an_onnx_file(tmp_path: Path, name: str, epochs: float, metric: str, reached: float):
    report = example(name).main(tmp_path, epochs)
    now = report.result.quality
    assert metric in now.metric
    assert now.value < reached if metric == "perplexity" else now.value > reached  # not learnt, nothing tested
    assert report.exactness is not None and report.exactness.holds
    assert report.result.macs < 0.65 * report.dense.macs
    assert report.exports[0].parity.worst_abs <= report.exports[0].parity.tolerance
    assert (tmp_path / "out" / "model.onnx").exists()
    assert load(tmp_path / "out" / "model.compressed") is not None
