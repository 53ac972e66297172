"""The TensorRT script without a GPU: arguments, refusals, files, and what it asks of releases of different ability.

Nothing here builds or runs an engine: that needs a GPU, and says nothing where it is pretended.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from exporters.standalone import engine
from exporters.standalone.engine import Refused

SCRIPT = Path(engine.__file__)


def no_gpu() -> bool:
    try:
        engine.Cuda()
    except Refused:
        return True
    return False


@pytest.mark.skipif(not no_gpu(), reason="there is a CUDA device here")
def test_without_a_gpu_nothing_is_built_and_nothing_is_pretended(tmp_path: Path):
    (tmp_path / "net.onnx").write_bytes(b"x")
    done = subprocess.run([sys.executable, SCRIPT, tmp_path / "net.onnx"], capture_output=True, text=True)
    assert done.returncode == 4 and done.stdout == ""
    assert done.stderr.startswith("not built: no CUDA device") and done.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]


def test_the_script_imports_nothing_but_the_standard_library_and_tensorrt():
    tree = ast.parse(SCRIPT.read_text(), feature_version=(3, 8))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} - sys.stdlib_module_names == {"tensorrt"}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["none.onnx"], "There is no file none.onnx"),
        (["none.onnx", "--batch", "0"], "numbers from 1 upwards"),
        (["none.onnx", "--input", "x.npy"], "belong together"),
    ],
)
def test_bad_arguments_are_one_sentence(words: list[str], part: str, capsys: pytest.CaptureFixture[str]):
    assert engine.main(words) == 2
    assert part in capsys.readouterr().err


def test_the_trtexec_line_says_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "m.onnx").write_bytes(b"x")
    words = [
        "--shape",
        "input=3x32x32",
        "--precision",
        "fp16",
        "--batch",
        "4",
        "--max-batch",
        "32",
        "--cache",
        "t.cache",
        "--trtexec",
    ]
    assert engine.main([str(tmp_path / "m.onnx"), *words]) == 0
    line = capsys.readouterr().out.split()
    assert line[:3] == ["trtexec", f"--onnx={tmp_path}/m.onnx", f"--saveEngine={tmp_path}/m.engine"]
    wanted = ["--minShapes=input:1x3x32x32", "--optShapes=input:4x3x32x32", "--maxShapes=input:32x3x32x32", "--fp16"]
    assert {*wanted, "--timingCacheFile=t.cache", "--memPoolSize=workspace:1024"} <= set(line)


def test_only_the_batch_may_be_free():
    assert engine.ranges((-1, 3, 8, 8), 2, 16) == [(1, 3, 8, 8), (2, 3, 8, 8), (16, 3, 8, 8)]
    assert engine.ranges((-1, 3), 8, 1) == [(1, 3), (8, 3), (8, 3)]
    assert engine.ranges((4, 3), 1, 1) == [(4, 3)] * 3
    with pytest.raises(Refused, match="only the batch may be free"):
        engine.ranges((-1, 3, -1, 8), 1, 1)


class Weak(Enum):
    FP16, INT8, TF32 = range(3)


class Strong(Enum):
    TF32 = 0


class BothFlags(Enum):
    EXPLICIT_BATCH, STRONGLY_TYPED = range(2)

    def __int__(self) -> int:
        return self.value


class Nothing(Enum):
    pass


def test_precision_is_a_flag_where_there_are_flags_and_stands_in_the_file_where_there_are_none():
    old = SimpleNamespace(BuilderFlag=Weak, NetworkDefinitionCreationFlag=BothFlags)
    new = SimpleNamespace(BuilderFlag=Strong, NetworkDefinitionCreationFlag=Nothing)
    assert engine.flags(old, "int8", weak=True) == [Weak.INT8, Weak.FP16] and engine.flags(old, "fp32", weak=True) == []
    assert engine.flags(new, "int8", weak=False) == []
    assert engine.network_flags(old, weak=True) == 1 and engine.network_flags(old, weak=False) == 3
    assert engine.network_flags(new, weak=False) == 0  # explicit batches and strong types are all that is left


TYPES = {"CAST": "HALF"}


def network(*kinds: str) -> SimpleNamespace:
    """Layers of a kind each, whose outputs are of the type FLOAT or HALF."""
    layers = [
        SimpleNamespace(type=kind, num_outputs=1, get_output=lambda _, of=kind: SimpleNamespace(dtype=TYPES.get(of, "FLOAT")))
        for kind in kinds
    ]
    return SimpleNamespace(num_layers=len(layers), get_layer=lambda i: layers[i])


class Reduce:
    """What a layer becomes when it is cast."""

    name = "mean"


class Layer(Reduce):
    type = "REDUCE"

    def __init__(self, axes: int) -> None:
        self.axes = axes


@pytest.mark.parametrize(("axes", "misread"), [(0b1100, False), (0b1111, True)])
def test_a_mean_over_the_batch_is_a_file_that_was_misread(axes: int, misread: bool):
    trt = SimpleNamespace(LayerType=SimpleNamespace(QUANTIZE="QUANTIZE", REDUCE="REDUCE"), IReduceLayer=Reduce)
    layer = Layer(axes)
    read = SimpleNamespace(num_layers=1, get_layer=lambda _: layer)
    if misread:
        with pytest.raises(Refused, match=r"average over the batch.*--opset 17") as caught:
            engine.check_precision(trt, read, "fp32", weak=True)
        assert caught.value.code == 2
    else:
        engine.check_precision(trt, read, "fp32", weak=True)


def test_a_precision_that_the_file_does_not_hold_is_refused():
    kinds = SimpleNamespace(QUANTIZE="QUANTIZE", REDUCE="REDUCE")
    trt = SimpleNamespace(LayerType=kinds, DataType=SimpleNamespace(HALF="HALF"))
    with pytest.raises(Refused, match="onnx-int8-symmetric"):
        engine.check_precision(trt, network("CONVOLUTION"), "int8", weak=True)
    engine.check_precision(trt, network("QUANTIZE", "CONVOLUTION"), "int8", weak=True)
    with pytest.raises(Refused, match="give that of onnx-fp16"):
        engine.check_precision(trt, network("CONVOLUTION"), "fp16", weak=False)
    engine.check_precision(trt, network("CONVOLUTION", "CAST"), "fp16", weak=False)
    engine.check_precision(trt, network("CONVOLUTION"), "fp16", weak=True)  # there a flag does it


def test_arrays_are_read_without_numpy(tmp_path: Path):
    values = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    shape, read = engine.load_npy(tmp_path / "x.npy")
    assert shape == (2, 3, 4) and read.tolist() == values.ravel().tolist()


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda path: np.save(path, np.zeros(3)), "holds <f8"),
        (lambda path: path.write_bytes(path.read_bytes()[:-4]), "is cut off: 5 values instead of 6"),
        (lambda path: path.write_bytes(b"PK" + bytes(30)), "is no .npy file"),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, change: object, part: str):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((2, 3), np.float32))
    change(path)  # type: ignore[operator]
    with pytest.raises(Refused, match=part):
        engine.load_npy(path)


def test_the_error_is_relative_to_all_outputs_and_infinite_where_a_number_is_lost():
    one = engine.array.array("f", [3.0, 4.0])
    assert engine.relative_error([one], [engine.array.array("f", [3.0, 4.5])]) == pytest.approx(0.1)
    assert engine.relative_error([one], [engine.array.array("f", [3.0])]) == float("inf")
    assert engine.relative_error([one], [engine.array.array("f", [3.0, float("nan")])]) == float("inf")
