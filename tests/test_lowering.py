"""Opset 17 from 18: the same model, in the form that older runtimes read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

import exporters
from exporters import ExportError, runtimes
from exporters.opset17 import lowered


class Net(nn.Module):
    """A mean over pixels, a largest value along one axis, a split, a padding, an enlargement and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(nn.functional.pad(x, (1, 1, 1, 1))))
        one, two = x.chunk(2, 1)
        x = torch.cat([two, one.amax(3, keepdim=True).expand_as(one)], 1)
        x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return self.last(x.mean((2, 3)))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


X = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_opset_17_is_the_model_and_holds_axes_as_attributes(tmp_path: Path):
    done = exporters.export("onnx", net(), (X[:2],), tmp_path / "net.onnx", samples=[(X,)], opset=17)
    assert done.opset == 17 and done.parity is not None and done.parity.worst_abs <= done.parity.tolerance
    proto = onnx.load(done.path)
    assert [o.version for o in proto.opset_import if o.domain == ""] == [17] and proto.ir_version <= 8
    reductions = {node.op_type: node for node in proto.graph.node if node.op_type in ("ReduceMean", "ReduceMax")}
    assert {name: len(node.input) for name, node in reductions.items()} == {"ReduceMean": 1, "ReduceMax": 1}
    axes = {n: [list(a.ints) for a in node.attribute if a.name == "axes"] for n, node in reductions.items()}
    assert sorted(axes["ReduceMean"][0]) in ([2, 3], [-2, -1]) and axes["ReduceMax"][0] in ([3], [-1])
    onnx.checker.check_model(str(done.path), full_check=True)
    plain = exporters.export("onnx", net(), (X[:2],), tmp_path / "plain.onnx", samples=[(X,)])
    found = [runtimes.load("ort", file.path).run([X.numpy()])[0] for file in (done, plain)]
    assert plain.opset == 18 and np.array_equal(*found)


def test_the_file_for_tensorrt_is_written_in_opset_17_where_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = {"samples": [(X,)], "calibration": [(torch.cat([X, X]),)], "int8_error": 0.3}
    done = exporters.export("onnx-int8-symmetric", net(), (X[:2],), tmp_path / "net.onnx", **options)
    proto = onnx.load(done.path)
    assert done.opset == 17 and [o.version for o in proto.opset_import if o.domain == ""] == [17]
    assert all(len(node.input) == 1 for node in proto.graph.node if node.op_type == "ReduceMean")
    points = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer if "zero_point" in t.name}
    assert points and not any(p.any() for p in points.values())
    monkeypatch.setattr("exporters.opset17.REDUCTIONS", frozenset())  # the checker finds what was left
    done = exporters.export("onnx-int8-symmetric", net(), (X[:2],), tmp_path / "net.onnx", **options)
    assert done.opset == 18 and done.closeness is not None
    with pytest.raises(ExportError, match=r"needs opset 18 or newer .*Ask for --opset 18"):
        exporters.export("onnx", net(), (X[:2],), tmp_path / "net.onnx", opset=17)


@pytest.mark.parametrize(
    ("node", "part"),
    [
        (helper.make_node("ReduceMean", ["x", "axes"], ["y"], name="m"), "ReduceMean of m has axes"),
        (helper.make_node("ReduceMean", ["x"], ["y"], name="m", noop_with_empty_axes=1), "noop_with_empty_axes"),
        (helper.make_node("Mish", ["x"], ["y"]), "needs opset 18"),
        (helper.make_node("Resize", ["x", "", "scales"], ["y"], antialias=1, mode="linear"), "needs opset 18"),
    ],
)
def test_what_opset_17_does_not_have_is_refused(node: onnx.NodeProto, part: str):
    kinds = {"x": onnx.TensorProto.FLOAT, "axes": onnx.TensorProto.INT64, "scales": onnx.TensorProto.FLOAT}
    sizes = {"x": [1, 1, 4, 4], "axes": [1], "scales": [4]}
    inputs = [helper.make_tensor_value_info(name, kinds[name], sizes[name]) for name in kinds]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 1, 4, 4])]
    graph = helper.make_graph([node], "g", [i for i in inputs if i.name in node.input], outputs)
    with pytest.raises(ExportError, match=part):
        lowered(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
