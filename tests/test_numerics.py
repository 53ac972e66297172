"""Numbers at their edges: each gives what is worked out by hand, or is refused in a sentence; the same seed, the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from runs import over
from torch import Tensor, nn

from compress.checkpoint.load import load
from compress.cli.main import cli
from compress.entropy.moments import Moments
from compress.entropy.ridge import ridge

RIDGE_SHRINKS = 0.02
"""Of the outputs' spread: a ridge of 1e-3 shrinks the weights of two layers, those of nearly equal inputs most."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def net(bias: bool = True) -> nn.Sequential:
    """Two convolutions of 8 channels, each before a ReLU, and a linear layer."""
    torch.manual_seed(0)
    convs = [nn.Conv2d(1, 8, 3, bias=bias), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=bias), nn.ReLU()]
    return nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()


def data(train: int = 60, test: int = 40) -> Tensor:
    """Random images in data.npz; gives those of the test."""
    random, arrays = np.random.default_rng(0), dict[str, Any]()
    for name, count in (("train", train), ("test", test)):
        arrays |= {f"x_{name}": random.standard_normal((count, 1, 8, 8)).astype(np.float32), f"y_{name}": np.arange(count) % 10}
    np.savez("data.npz", **arrays)
    return torch.from_numpy(arrays["x_test"])


def run(model: nn.Module, *more: str) -> Result:
    torch.save(model, "model.pt")
    quick = ("--align", "1", "--epochs", "0", "--rounds", "5", "--calibration", "40", "--export", "", "--force")
    words = ["run", "model.pt", "--data", "data.npz", "--target", "params=0.45", *quick]
    return CliRunner().invoke(cli, over(words, *more))


def kept() -> dict[str, set[int]]:
    """Channels that stay, by layer."""
    return {edit["layer"]: set(edit["keep"]) for edit in json.loads(Path("out/plan.json").read_text())["edits"]}


def apart(model: nn.Module, images: Tensor) -> float:
    """Largest difference of the result's outputs from the model's, beside their spread over the images."""
    with torch.no_grad():
        dense, small = model(images), load("out/model.compressed")(images)
    return float((dense - small).abs().max() / dense.std(0).max())


@pytest.mark.parametrize("method", ["entropic", "magnitude"])
def test_dead_channels_go_and_nothing_changes(method: str):
    images, model = data(), net()
    with torch.no_grad():
        for layer, dead, bias in ((model[0], [1, 3, 5, 7], 0.0), (model[2], [0, 1, 2, 3], -1.0)):
            layer.weight[dead], layer.bias[dead] = 0.0, bias
    assert run(model, "--method", method).exit_code == 0
    stay, alive = kept(), {0, 2, 4, 6}
    # The same share of every layer, and a channel more where it fits: a dead one stays beside the living, never in their place.
    assert stay["0"] <= alive or (method == "magnitude" and stay["0"] >= alive)
    assert stay["2"] >= {4, 5, 6, 7}
    assert apart(model, images) < RIDGE_SHRINKS


def test_channels_without_variance_go_and_what_they_gave_stays():
    images, model = data(), net()
    with torch.no_grad():
        for layer, constant, bias in ((model[0], [1, 3, 5, 7], 0.7), (model[2], [0, 1, 2, 3], 0.3)):
            layer.weight[constant], layer.bias[constant] = 0.0, bias
    assert run(model).exit_code == 0
    stay = kept()
    assert stay["0"] <= {0, 2, 4, 6} and stay["2"] >= {4, 5, 6, 7}
    assert apart(model, images) < RIDGE_SHRINKS


def test_of_channels_that_are_there_twice_one_stays_and_the_next_layer_doubles_it():
    images, model = data(), net()
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[4:], layer.bias[4:] = layer.weight[:4].clone(), layer.bias[:4].clone()
    assert run(model).exit_code == 0
    stay = kept()
    assert all({channel % 4 for channel in channels} == {0, 1, 2, 3} for channels in stay.values())
    assert sum(map(len, stay.values())) < 16
    assert apart(model, images) < RIDGE_SHRINKS


@pytest.mark.parametrize("scale", [1e-15, 1e14])
def test_the_scale_of_a_layer_that_the_next_one_takes_back_changes_no_choice(scale: float):
    data()
    assert run(net(bias=False)).exit_code == 0
    expected, scaled = kept(), net(bias=False)
    with torch.no_grad():
        scaled[0].weight *= scale
        scaled[2].weight /= scale
    assert run(scaled).exit_code == 0
    assert kept() == expected


def test_weights_of_1e_30_compute_next_to_nothing_and_so_does_the_result():
    images, model = data(), net(bias=False)
    with torch.no_grad():
        model[0].weight *= 1e-30
        model[2].weight *= 1e-30  # their product is below what float32 holds: the outputs are the last layer's biases
    assert run(model).exit_code == 0
    with torch.no_grad():
        small = load("out/model.compressed")(images)
    torch.testing.assert_close(small, model[6].bias.detach().expand_as(small), rtol=1e-6, atol=0)


@pytest.mark.parametrize("value", [1e30, float("nan"), float("inf")])
def test_weights_that_compute_infinities_are_refused(value: float):
    data()
    model = net()
    with torch.no_grad():
        model[2].weight[0, 0, 0, 0] = value
    result = run(model)
    assert result.exit_code == 2 and "its training diverged" in result.stderr and "2.weight" in result.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize(("train", "test", "code"), [(1, 1, 2), (1, 40, 2), (2, 2, 0), (60, 1, 0)])
def test_one_image_and_two_are_enough_or_refused(train: int, test: int, code: int):
    data(train, test)
    result = run(net())
    assert result.exit_code == code, result.output
    if code:
        assert "eeded are at least" in result.stderr and not Path("out").exists()
        return
    report = json.loads(Path("out/report.json").read_text())
    assert report["exactness"]["worst_abs"] <= report["exactness"]["tolerance"]
    assert report["stages"][-1]["quality"]["samples"] == test
    assert all(p.isfinite().all() for p in load("out/model.compressed").parameters())


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1.0, 1e6, 1e15])
def test_a_regression_gives_the_same_at_any_scale_of_its_inputs(scale: float):
    torch.manual_seed(0)
    x = torch.randn(500, 3)
    y = x @ torch.tensor([[1.0, 2.0], [0.0, -1.0], [0.5, 0.0]]) + 0.25
    moments = Moments()
    moments.add(x * scale, y)
    found = ridge(moments, ridge=1e-9)
    torch.testing.assert_close(found.weight * scale, torch.tensor([[1.0, 0.0, 0.5], [2.0, -1.0, 0.0]]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.bias, torch.tensor([0.25, 0.25]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1e-20, 0.7, 300.0])
def test_from_inputs_that_never_change_a_regression_gives_the_mean(value: float):
    torch.manual_seed(0)
    y, moments = torch.randn(500, 2), Moments()
    moments.add(torch.full((500, 3), value), y)
    found = ridge(moments)
    given = found.weight @ torch.full((3,), value) + found.bias
    torch.testing.assert_close(given, y.mean(0), rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_bytes():
    data()
    results = []
    for name in ("one", "two"):
        assert run(net(), "--epochs", "0.5", "--out", name).exit_code == 0
        results.append([(Path(name) / file).read_bytes() for file in ("plan.json", "model.compressed/weights.safetensors")])
    assert results[0] == results[1]
    assert run(net(), "--epochs", "0.5", "--seed", "1", "--out", "three").exit_code == 0
    assert Path("three/model.compressed/weights.safetensors").read_bytes() != results[0][1]
