"""ONNX with fewer bits: near enough to the model, the worst layers left in float, refused where it is not near enough."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import exporters
from exporters import ExportError, ParityError, qdq, runtimes

Batches = list[tuple[Tensor, ...]]


def seeded(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(128, 5),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def calibration() -> Batches:
    return [(seeded(16, 3, 8, 8, seed=n),) for n in (2, 3)]


def export(net: nn.Module, path: Path, calibration: Batches, **options: object) -> exporters.Exported:
    samples = [(seeded(32, 3, 8, 8, seed=9),)]
    return exporters.export("onnx-int8", net, (seeded(1, 3, 8, 8),), path, samples=samples, calibration=calibration, **options)


@pytest.fixture(scope="module")
def quantized(net: nn.Module, calibration: Batches, tmp_path_factory: pytest.TempPathFactory) -> exporters.Exported:
    return export(net, tmp_path_factory.mktemp("int8") / "net.int8.onnx", calibration, metadata={"compress.mean": "0.5"})


def test_every_layer_computes_in_8_bits_with_a_scale_per_output_channel(quantized: exporters.Exported):
    graph = onnx.load(quantized.path).graph
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    widened = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 3 and quantized.kept_float == ()
    for layer in layers:
        weight = widened[layer.input[1]]
        assert stored[weight.input[0]].dtype == np.int8 and stored[weight.input[1]].size == {"Conv": 8, "Gemm": 5}[layer.op_type]
        assert layer.input[0] in widened  # what it reads is 8 bits as well


def test_the_record_states_closeness_instead_of_parity(net: nn.Module, quantized: exporters.Exported):
    x = seeded(32, 3, 8, 8, seed=9)
    y, z = net(x).detach().numpy(), runtimes.load("ort", quantized.path).run([x.numpy()])[0]
    close = quantized.closeness
    assert quantized.parity is None and close is not None
    assert close.samples == 33 and close.allowed == pytest.approx(0.1)  # twice the bound, on images it was not calibrated on
    assert close.relative == pytest.approx(np.linalg.norm(z - y) / np.linalg.norm(y), rel=0.05)  # that of 32 of the 33
    assert 1e-4 < close.relative < 0.05  # 8 bits are no float, and not far from it
    assert close.agreement is not None and close.agreement >= (y.argmax(1) == z.argmax(1)).mean() * 32 / 33


def test_the_batch_stays_dynamic_and_metadata_stand_in_the_file(quantized: exporters.Exported):
    assert [runtimes.load("ort", quantized.path).run([seeded(n, 3, 8, 8).numpy()])[0].shape for n in (1, 7)] == [(1, 5), (7, 5)]
    assert {p.key: p.value for p in onnx.load(quantized.path).metadata_props} == {"compress.mean": "0.5"}


def test_equal_models_give_equal_bytes(net: nn.Module, quantized: exporters.Exported, calibration: Batches, tmp_path: Path):
    again = export(net, tmp_path / "again.onnx", calibration, metadata={"compress.mean": "0.5"})
    assert again.sha256 == quantized.sha256


def with_an_outlier(net: nn.Module) -> nn.Module:
    """Two channels of equal content, of which one is 3,000 times larger on its way through the second layer's input."""
    odd = copy.deepcopy(net)
    with torch.no_grad():
        odd[0].weight[0] *= 3000
        odd[0].bias[0] *= 3000
        odd[3].weight[:, 0] /= 3000
    return odd


def test_the_layers_that_move_the_outputs_most_stay_in_float(net: nn.Module, calibration: Batches, tmp_path: Path):
    done = export(with_an_outlier(net), tmp_path / "odd.onnx", calibration)
    # In between, the scale is that of the outlier, and all other channels round to nothing: who writes and who reads that stay.
    assert set(done.kept_float) == {"0", "3"}
    assert done.closeness is not None and done.closeness.relative < 0.1
    kinds = [node.op_type for node in onnx.load(done.path).graph.node]
    assert kinds.count("Conv") == 2 and kinds.count("QuantizeLinear") == 2  # around the last layer


def test_a_bound_that_no_choice_of_layers_keeps_is_refused(net: nn.Module, calibration: Batches, tmp_path: Path):
    with pytest.raises(ExportError, match=r"relative error of .* does not bring it down to 1e-09.*--int8-error"):
        export(net, tmp_path / "net.onnx", calibration, int8_error=1e-9)
    assert list(tmp_path.iterdir()) == []


def test_new_samples_that_are_too_far_off_refuse_the_file(net: nn.Module, calibration: Batches, tmp_path: Path):
    loud = [(20 * seeded(16, 3, 8, 8, seed=9),)]  # far outside of what was calibrated on
    with pytest.raises(ParityError, match="as a share of its size"):
        exporters.export("onnx-int8", net, (seeded(1, 3, 8, 8),), tmp_path / "net.onnx", samples=loud, calibration=calibration)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("calibrator", ["percentile", "entropy"])
def test_other_calibrators_take_other_ranges(
    net: nn.Module, quantized: exporters.Exported, calibration: Batches, tmp_path: Path, calibrator: str
):
    done = export(net, tmp_path / "net.onnx", calibration, calibrator=calibrator, int8_error=0.2)
    assert scales(done.path) != scales(quantized.path) and done.closeness is not None and done.closeness.relative < 0.2


def scales(path: Path) -> dict[str, float]:
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    return {name: float(value) for name, value in stored.items() if name.endswith("_scale") and value.size == 1}


def test_what_tensorrt_reads_has_no_zero_points_and_float_biases(net: nn.Module, calibration: Batches, tmp_path: Path):
    samples = [(seeded(32, 3, 8, 8, seed=9),)]
    options = {"samples": samples, "calibration": calibration}
    path = exporters.export("onnx-int8-symmetric", net, (seeded(1, 3, 8, 8),), tmp_path / "net.onnx", **options).path
    graph = onnx.load(path).graph
    points = [onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name.endswith("_zero_point")]
    assert points and all(not point.any() and point.dtype == np.int8 for point in points)
    floats = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    assert {"0.weight", "0.bias"} <= floats  # TensorRT quantizes weights itself, and leaves biases


@pytest.mark.parametrize(("options", "part"), [({}, "Add --data"), ({"calibration": [(seeded(1, 3, 8, 8),)]}, "There are 1")])
def test_too_little_to_calibrate_on_is_refused(net: nn.Module, tmp_path: Path, options: dict[str, object], part: str):
    with pytest.raises(ExportError, match=part):
        exporters.export("onnx-int8", net, (seeded(1, 3, 8, 8),), tmp_path / "net.onnx", **options)


def test_an_unknown_calibrator_is_refused(net: nn.Module, calibration: Batches, tmp_path: Path):
    with pytest.raises(ExportError, match="known are minmax, percentile, entropy"):
        export(net, tmp_path / "net.onnx", calibration, calibrator="guess")


def test_a_model_without_layers_has_nothing_to_quantize(calibration: Batches, tmp_path: Path):
    with pytest.raises(ExportError, match="Nothing in this model can be quantized"):
        export(nn.ReLU(), tmp_path / "net.onnx", calibration)


def test_half_precision_halves_the_file_and_stays_near(net: nn.Module, tmp_path: Path):
    x = seeded(8, 3, 8, 8)
    whole = exporters.export("onnx", net, (x,), tmp_path / "net.onnx")
    half = exporters.export("onnx-fp16", net, (x,), tmp_path / "half.onnx", calibration=[])
    stored = [t for t in onnx.load(half.path).graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    assert stored == [] and half.bytes < 0.75 * whole.bytes  # the graph itself does not shrink
    assert half.closeness is not None and 1e-6 < half.closeness.relative < 2e-3  # 11 bits
    assert whole.closeness is not None and whole.closeness.relative < 1e-6 and whole.closeness.agreement == 1


def test_a_value_beyond_half_precision_is_refused(tmp_path: Path):
    loud = nn.Linear(4, 2)
    with torch.no_grad():
        loud.weight.fill_(1e5)
    with pytest.raises(ParityError, match="as a share of its size"):
        exporters.export("onnx-fp16", loud, (torch.ones(2, 4),), tmp_path / "half.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_option_that_no_format_knows_is_a_mistake(net: nn.Module, tmp_path: Path):
    with pytest.raises(TypeError, match="precision"):
        exporters.export("onnx", net, (seeded(2, 3, 8, 8),), tmp_path / "net.onnx", precision=3)


def test_ranks_are_by_the_error_that_each_layer_makes_alone(net: nn.Module, calibration: Batches, tmp_path: Path):
    path = exporters.export("onnx", with_an_outlier(net), (seeded(2, 3, 8, 8),), tmp_path / "net.onnx").path
    samples = [tuple(x.numpy() for x in batch) for batch in calibration]
    search = qdq._Search(path, qdq._ranges(path, samples, qdq.CALIBRATORS["minmax"]), False, tuple(samples))
    layers = [node.name for node in onnx.load(path).graph.node if node.op_type in qdq.LAYERS]
    assert search.order(layers)[-1] == layers[2]
