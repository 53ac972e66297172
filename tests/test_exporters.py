"""Exported files: equal to the model, self-contained, and absent when anything went wrong."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace
from torchvision.ops import DeformConv2d

import exporters
from compress.cli.output import compared
from exporters import ExportError, MissingBackend, ParityError, parity
from exporters import onnx as exporter
from exporters.capture import Subject
from exporters.parity import _agreeing


def seeded(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.Hardswish(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(8, 5),
    )
    net(seeded(16, 3, 8, 8))  # running statistics that are not 0 and 1
    return symbolic_trace(net.eval())


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return small_net()


@pytest.fixture(scope="module")
def exported(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> exporters.Exported:
    path = tmp_path_factory.mktemp("export") / "deep" / "net.onnx"
    samples = [(seeded(4, 3, 8, 8),), (seeded(3, 3, 8, 8, seed=2),)]
    metadata = {"plan_sha256": "ab" * 32, "normalization": "mean=0.5 std=0.25"}
    return exporters.export("onnx", net, (seeded(1, 3, 8, 8),), path, samples=samples, metadata=metadata)


def run(path: Path, *inputs: Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(None, feeds)  # type: ignore[return-value]


def test_the_file_computes_what_the_model_computes_for_any_batch(net: nn.Module, exported: exporters.Exported):
    for batch in (1, 2, 7):
        x = seeded(batch, 3, 8, 8, seed=batch)
        np.testing.assert_allclose(run(exported.path, x)[0], net(x).detach().numpy(), atol=1e-5)  # fp32 sums of size 1


def test_the_record_says_what_was_proven(exported: exporters.Exported):
    assert (exported.format, exported.opset) == ("onnx", 18)
    assert exported.bytes == exported.path.stat().st_size
    assert exported.parity is not None
    assert exported.parity.worst_abs <= exported.parity.tolerance < 1e-3
    assert exported.parity.batch_sizes == (1, 3, 4) and exported.parity.samples == 4 + 1 + 3


def test_names_metadata_and_dynamic_batch_stand_in_the_file(exported: exporters.Exported):
    proto = onnx.load(exported.path)
    assert [i.name for i in proto.graph.input] == ["input"] and [o.name for o in proto.graph.output] == ["output"]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {p.key: p.value for p in proto.metadata_props} == {
        "plan_sha256": "ab" * 32,
        "normalization": "mean=0.5 std=0.25",
    }
    assert proto.opset_import[0].version == 18


def test_batch_norms_are_folded_and_an_activation_is_one_node(exported: exporters.Exported):
    kinds = [node.op_type for node in onnx.load(exported.path).graph.node]
    assert kinds.count("HardSwish") == 1
    assert "BatchNormalization" not in kinds and "Clip" not in kinds


def test_the_file_names_no_path_of_the_machine(exported: exporters.Exported):
    assert b"site-packages" not in exported.path.read_bytes()
    assert b".py" not in exported.path.read_bytes()


def test_nothing_else_is_left_in_the_folder(exported: exporters.Exported):
    assert [file.name for file in exported.path.parent.iterdir()] == ["net.onnx"]


def test_exporting_leaves_the_model_as_it_was_and_gives_the_same_bytes(exported: exporters.Exported, tmp_path: Path):
    model = small_net().train()
    model.get_submodule("1").eval()
    before = copy.deepcopy(model)
    again = exporters.export(
        "onnx",
        model,
        (seeded(1, 3, 8, 8),),
        tmp_path / "net.onnx",
        metadata={"plan_sha256": "ab" * 32, "normalization": "mean=0.5 std=0.25"},
    )
    assert again.sha256 == exported.sha256
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.state_dict().values(), strict=True))
    assert model.get_submodule("2").inplace is True
    assert str(model.graph) == str(before.graph)  # type: ignore[attr-defined]


class TwoInTwoOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), (x * y).sum(1)


def test_several_inputs_and_outputs_are_numbered(tmp_path: Path):
    x, y = seeded(5, 4), seeded(5, 4, seed=2)
    model = symbolic_trace(TwoInTwoOut().eval())
    done = exporters.export("onnx", model, (x, y), tmp_path / "two.onnx")
    proto = onnx.load(done.path)
    assert [i.name for i in proto.graph.input] == ["input_0", "input_1"]
    assert [o.name for o in proto.graph.output] == ["output_0", "output_1"]
    for found, expected in zip(run(done.path, x, y), model(x, y), strict=True):
        np.testing.assert_allclose(found, expected.detach().numpy(), atol=1e-5)  # fp32 sums of 4 terms


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.conv(x)
        return {"out": features, "aux": features.mean((2, 3))}


def test_outputs_of_a_dictionary_keep_their_keys(tmp_path: Path):
    x = seeded(2, 3, 4, 4)
    done = exporters.export("onnx", symbolic_trace(Named().eval()), (x,), tmp_path / "named.onnx")
    assert [o.name for o in onnx.load(done.path).graph.output] == ["out", "aux"]
    assert [y.shape for y in run(done.path, x)] == [(2, 2, 4, 4), (2, 2)]


def test_weights_too_large_for_one_file_go_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(exporter, "SINGLE_FILE_BYTES", 100)
    torch.manual_seed(0)
    x, net = seeded(2, 32), nn.Linear(32, 32)
    done = exporters.export("onnx", net, (x,), tmp_path / "net.onnx")
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["net.onnx", "net.onnx.data"]
    assert done.bytes == sum(file.stat().st_size for file in files)
    np.testing.assert_allclose(run(done.path, x)[0], net(x).detach().numpy(), atol=1e-5)  # fp32 sums of size 1


class FixedBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 12)


def test_a_batch_size_written_into_the_code_is_refused_with_what_to_do(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(ExportError, match=r"does not run on inputs of shape \(1, 12\).*x\.shape\[0\]"):
        exporters.export("onnx", symbolic_trace(FixedBatch()), (seeded(2, 12),), tmp_path / "fixed.onnx")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


class NoOnnx(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x @ x.transpose(1, 2))


def test_an_operator_without_onnx_is_refused_with_its_node(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(ExportError, match=r"does not export to ONNX.*linalg"):
        exporters.export("onnx", symbolic_trace(NoOnnx()), (seeded(2, 3, 3),), tmp_path / "eig.onnx")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_file_that_computes_something_else_is_not_kept(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    convert = exporter._convert

    def with_another_bias(*args: object) -> onnx.ModelProto:
        proto = convert(*args)  # type: ignore[arg-type]
        bias = next(t for t in proto.graph.initializer if t.name == "6.bias")
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.01), bias.name))
        return proto

    monkeypatch.setattr(exporter, "_convert", with_another_bias)
    (tmp_path / "net.onnx").write_text("the file of an earlier export")
    with pytest.raises(ParityError, match=r"output differs by up to 0\.01") as caught:
        exporters.export("onnx", net, (seeded(2, 3, 8, 8),), tmp_path / "net.onnx")
    assert caught.value.worst == pytest.approx(0.01, rel=1e-2) and caught.value.tolerance < 1e-3
    assert (tmp_path / "net.onnx").read_text() == "the file of an earlier export"
    assert len(list(tmp_path.iterdir())) == 1


def identity_parity(off_by: float, y: Tensor) -> exporters.Parity:
    def file(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [arrays[0] + np.float32(off_by)]

    found = parity.check(file, identity(), [(y,)]).parity
    assert found is not None
    return found


def identity() -> Subject:
    return Subject(nn.Identity(), (), ("input",), ("output",), lambda out: [out])  # type: ignore[list-item]


def test_parity_is_relative_to_the_scale_of_the_output():
    y = torch.tensor([[1e-3, 1000.0]])
    assert identity_parity(0.05, y).worst_abs == pytest.approx(0.05, rel=1e-2)  # below 1e-4 * 1000
    with pytest.raises(ParityError):
        identity_parity(0.2, y)
    with pytest.raises(ParityError):
        identity_parity(1e-9, y * 1e-9)  # a tiny output is held to its own scale


@pytest.mark.parametrize(("off", "right"), [(0.0, True), (0.05, False)])
def test_a_model_that_rounds_more_than_files_may_differ_is_held_to_its_own_rounding(off: float, right: bool):
    """Two layers whose large weights cancel: a file that adds in another order is as right as the model is."""
    mixing = torch.linalg.qr(seeded(64, 64).double())[0]
    small = mixing @ torch.diag(torch.logspace(0, -4, 64, dtype=torch.float64)) @ mixing.T
    pair = [nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)]
    for layer, weight in zip(pair, (small, small.inverse()), strict=True):
        layer.weight = nn.Parameter(weight.float())
    model, order = nn.Sequential(*pair).eval(), torch.randperm(64, generator=torch.Generator().manual_seed(2))
    first, second = (layer.weight.detach().numpy()[rows] for layer, rows in zip(pair, (order, slice(None)), strict=True))
    subject = Subject(model, (), ("input",), ("output",), lambda out: [out])  # type: ignore[list-item]

    def file(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [(arrays[0] @ first.T) @ second[:, order.numpy()].T + np.float32(off)]

    x = (seeded(8, 64),)
    with torch.inference_mode():
        expected = model(*x).numpy()
    scale = np.abs(expected).max()
    assert np.abs(file([x[0].numpy()])[0] - off - expected).max() > parity.RTOL * scale, "the case is one"
    if right:
        found = parity.check(file, subject, [x]).parity
        assert found is not None and parity.RTOL * scale < found.worst_abs <= found.tolerance <= 0.01 * scale
    else:
        with pytest.raises(ParityError):
            parity.check(file, subject, [x])


def test_a_number_that_is_no_longer_finite_fails_parity():
    y = torch.ones(1, 2)
    with pytest.raises(ParityError, match="inf"):
        identity_parity(float("nan"), y)
    assert identity_parity(0.0, torch.tensor([[float("-inf"), 1.0]])).worst_abs == 0


def test_a_model_that_gives_no_number_is_told_and_not_taken_for_equal():
    with pytest.raises(ExportError, match=r"gives no number \(NaN or infinite\) anywhere in .* for these inputs"):
        identity_parity(0.0, torch.full((2, 3), float("nan")))
    with pytest.raises(ExportError, match="anywhere"):
        identity_parity(0.0, torch.full((2, 3), float("inf")))
    half = torch.tensor([[float("nan"), 1.0]])  # as where a log meets what is below 0
    assert identity_parity(0.0, half).worst_abs == 0
    found = parity.check(lambda a: list(a), identity(), [(half,)])
    assert found.closeness.no_number == 0.5
    made = exporters.Exported("onnx", Path("m.onnx"), "", 0, 18, found.parity, found.closeness)
    assert "are no numbers (NaN or infinite) in 50.00% of places" in compared(made)


def test_two_samples_are_also_run_as_one_and_one_as_three():
    def sizes(n: int) -> tuple[int, ...]:
        return parity.check(lambda a: list(a), identity(), [(torch.randn(n, 3),)]).parity.batch_sizes

    assert [sizes(n) for n in (1, 2, 3)] == [(1, 3), (1, 2), (1, 3)]


def test_agreement_is_the_share_of_samples_of_the_same_class():
    y = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0], [1.0, 2.0]])
    flipped = y.clone()
    flipped[1] = y[1].flip(0)
    found = parity.check(lambda a: [flipped.numpy()[: len(a[0])]], identity(), [(y,)], allowed=9.0).closeness
    assert found.agreement == 4 / 5  # the first sample is run twice


def test_another_shape_fails_parity():
    with pytest.raises(ParityError, match="shape"):
        parity.check(lambda a: [a[0][:, :1]], identity(), [(torch.ones(2, 2),)])


def test_parity_without_inputs_is_no_proof():
    with pytest.raises(ValueError, match="at least one batch"):
        parity.check(lambda a: list(a), identity(), [])


@pytest.mark.parametrize("opset", [16, 99])
def test_an_opset_out_of_range_is_refused(net: nn.Module, tmp_path: Path, opset: int):
    with pytest.raises(ExportError, match=f"The opset is {opset}; needed is one from 17"):
        exporters.export("onnx", net, (seeded(2, 3, 8, 8),), tmp_path / "net.onnx", opset=opset)


def test_a_later_opset_is_written(net: nn.Module, tmp_path: Path):
    done = exporters.export("onnx", net, (seeded(2, 3, 8, 8),), tmp_path / "net.onnx", opset=21)
    assert done.opset == 21 and onnx.load(done.path).opset_import[0].version == 21


def test_a_folder_as_path_is_refused(net: nn.Module, tmp_path: Path):
    with pytest.raises(ExportError, match="is a folder"):
        exporters.export("onnx", net, (seeded(2, 3, 8, 8),), tmp_path)


def test_a_path_below_a_file_is_refused(net: nn.Module, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="cannot be written"):
        exporters.export("onnx", net, (seeded(2, 3, 8, 8),), tmp_path / "file" / "net.onnx")


def test_an_unknown_format_is_refused(net: nn.Module, tmp_path: Path):
    with pytest.raises(ExportError, match="known are onnx"):
        exporters.export("pdf", net, (seeded(2, 3, 8, 8),), tmp_path / "net.pdf")


def test_every_format_has_a_module_and_an_install_line():
    assert set(exporters.EXPORTERS) == set(exporters.INSTALL)
    found = exporters.available()
    assert found["onnx"].works and "onnxruntime" in found["onnx"].detail


def test_a_missing_package_is_named_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "exporters.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    found = exporters.available()["onnx"]
    assert not found.works and "onnxscript" in found.detail and found.install in found.detail
    with pytest.raises(MissingBackend, match="pip install onnx"):
        exporters.export("onnx", nn.Identity(), (torch.zeros(1),), "x.onnx")


def test_control_flow_on_values_is_refused_with_what_to_do(tmp_path: Path):
    class Branches(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x

    with pytest.raises(ExportError, match=r"does not export.*depends on tensor values.*torch\.cond"):
        exporters.export("onnx", Branches(), (torch.ones(1, 4),), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_classes_of_a_text_lie_on_its_last_axis():
    one = np.zeros((2, 4, 4), dtype=np.float32)
    one[0, 1, 3], one[1, 2, 0] = 1, 1
    other = one.copy()
    other[0, 1, 3], other[0, 1, 2] = 0, 1  # another token at one place of eight
    assert _agreeing(one, other) == (7, 8) and _agreeing(one, one) == (8, 8)
    assert _agreeing(one[:, :, 0], other[:, :, 0]) == (2, 2) and _agreeing(one[:, 0, :1], one[:, 0, :1]) == (0, 0)


class Deformed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offsets = nn.Conv2d(3, 18, 1)
        self.conv = DeformConv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, self.offsets(x))


@pytest.mark.parametrize("opset", [17, 18])
def test_the_lowest_opset_that_has_an_operator_is_named_and_works(tmp_path: Path, opset: int):
    inputs = (seeded(1, 3, 8, 8),)
    try:
        assert exporters.export("onnx", Deformed(), inputs, tmp_path / "model.onnx", opset=19).parity is not None
    except ExportError as error:
        if not re.search("No ONNX function found for|Could not find an implementation for DeformConv", str(error)):
            raise
        pytest.skip("onnxscript before 0.7, or this ONNX Runtime, has no deformable convolution, and says so")
    with pytest.raises(ExportError, match=f"Opset {opset} does not have DeformConv, .*: give --opset 19"):
        exporters.export("onnx", Deformed(), inputs, tmp_path / "model.onnx", opset=opset)


def test_a_copy_behind_attention_with_a_mask_is_in_the_file(tmp_path: Path):
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 3)

        def forward(self, x):
            q, k, v = (t.view(x.shape[0], 6, 2, 4).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
            y = nn.functional.scaled_dot_product_attention(q, k, v, (q @ k.transpose(-2, -1)).sin())
            return self.out(y.transpose(1, 2).contiguous().reshape(x.shape[0], 6, -1))

    done = exporters.export("onnx", Attends().eval(), (torch.randn(1, 6, 8),), tmp_path / "model.onnx", metadata={})
    assert done.path.exists()


@pytest.mark.parametrize("beside", [8, "name", None, "sizes"])
def test_what_a_model_returns_beside_tensors_has_no_place_in_a_file(beside: object, tmp_path: Path):
    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> dict[str, object]:
            return {"stride": x.shape[-1:] if beside == "sizes" else beside, "y": self.layer(x)}

    x = torch.randn(2, 4)
    made = exporters.export("onnx", Told().eval(), (x,), tmp_path / "m.onnx", samples=[(x,)])
    (output,) = onnx.load(made.path).graph.output
    assert output.name == ("output" if beside == "sizes" else "y") and made.parity is not None
