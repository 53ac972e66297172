"""A value that is none is answered with what was probably meant."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.checkpoint.load.architectures import factory
from compress.errors import BadInput
from compress.measure import known_names, meant, quality
from compress.measure.asked import UNITS, parse_target
from compress.recipe import make

TARGETS = {
    "0.5": "macs=0.5",
    "50%": "macs=0.5",
    "6.5MB": "size=6.5MB",
    "mac=0.5": "macs=0.5",
    "flops=0.4": "macs=0.4",
    "parms=0.25": "params=0.25",
    "params=50%": "params=0.5",
    "params=25": "params=0.25",
    "size=6.5": "size=6.5MB",
    "bytes=6.5MB": "size=6.5MB",
    "ms=5": "latency=5ms",
    "activation=0.5": "activations=0.5",
}


@pytest.mark.parametrize("text", TARGETS)
def test_a_target(text: str):
    with pytest.raises(BadInput) as refused:
        parse_target(text)
    said = str(refused.value)
    assert f"Did you mean {TARGETS[text]}?" in said or (text == "bytes=6.5MB" and "needed is" in said)
    with pytest.raises(BadInput, match="The target is"):
        make(model="a.pt", data="digits", target=text)


@pytest.mark.parametrize("text", ["params=0", "macs=1.5", "macs=2000", "banana", "banana=0.5", "", "=", "size=lots"])
def test_nothing_is_suggested_where_nothing_comes_close(text: str):
    assert meant.target(text, UNITS) == ""


@pytest.mark.parametrize("text", ["macs=0.3M", "params=10k", "macs=400000"])
def test_counts_are_told_to_be_fractions(text: str):
    with pytest.raises(BadInput, match="are a fraction of the dense model's"):
        parse_target(text)


def test_a_speed_up_is_no_target_and_what_to_ask_for_is_said():
    with pytest.raises(BadInput, match=r"A speed-up is no target: give latency=FRACTION"):
        parse_target("speedup=2")


@pytest.mark.parametrize(
    ("name", "said"),
    [("tflite", "litert"), ("int8", "onnx-int8"), ("onx", "onnx"), ("openvin", "openvino"), ("tensorrt", "onnx")],
)
def test_a_format(name: str, said: str, tmp_path: Path):
    with pytest.raises(BadInput, match=f"Did you mean {said}\\?"):
        compress.export(tmp_path / "a.pt", format=name)
    with pytest.raises(BadInput, match=f"Did you mean {said}\\?"):
        compress.run(tmp_path / "a.pt", data="digits", export=name, out=tmp_path / "out")


@pytest.mark.parametrize(("name", "said"), [("resnet18", "torchvision:resnet18"), ("mobilenet_v2", "torchvision:mobilenet_v2")])
def test_an_architecture(name: str, said: str):
    with pytest.raises(BadInput, match=f"Did you mean {said}\\?"):
        factory(name)


def test_names_that_settings_take_are_those_that_there_are():
    assert set(known_names.METRICS) == set(quality.METRICS)
    for name in known_names.METRICS:
        assert make(metric=name).metric == name
    for name in ("auto", "cpu", "cpu:0", "mps", "cuda", "cuda:1"):
        assert make(device=name).device == name
    assert make(loss="net.py:loss", metric="net.py:metric", export="onnx,openvino").export == ("onnx", "openvino")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"metric": "topp1"}, "known are auto, top1.*Did you mean top1"),
        ({"loss": "cross-entropy"}, "known are auto, cross_entropy.*Did you mean cross_entropy"),
        ({"device": "gpu"}, "needed is auto, cpu, cuda, cuda:N or mps"),
        ({"device": "cuda:"}, "needed is auto, cpu, cuda, cuda:N or mps"),
        ({"export": "onnx,tflite"}, "--export is 'tflite'.*Did you mean litert"),
        ({"export": ("onx",)}, "--export is 'onx'.*Did you mean onnx"),
    ],
)
def test_a_name_that_there_is_not_is_refused_before_anything_is_opened(settings: dict[str, Any], said: str):
    with pytest.raises(BadInput, match=said):
        make(model="nowhere.pt", **settings)


def test_a_typo_is_told_without_torch():
    tried = """import sys
from compress.recipe import make
try:
    make(loss="xx", epochs=0.0)
except Exception as error:
    print(error)
assert "torch" not in sys.modules"""
    done = subprocess.run([sys.executable, "-c", tried], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("The loss is 'xx'"), done.stderr
