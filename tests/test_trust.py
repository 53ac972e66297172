"""What somebody else wrote names data, torchvision and timm; what would run code needs --trust-recipe on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import compress
from compress.cli.main import cli
from compress.data import open_data
from compress.errors import BadInput
from compress.recipe import code_in, from_toml

EVIL = """
import pathlib
pathlib.Path("it-ran").touch()
def factory(*_, **__):
    pathlib.Path("it-ran").touch()
    raise SystemExit
net = metric = loss = factory
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text(EVIL)
    torch.save(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)).eval(), "model.pt")
    return tmp_path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["run", *arguments])


@pytest.mark.parametrize(
    "line",
    [
        'arch = "os:system"\narch_kwargs = {command = "touch it-ran"}',
        'arch = "evil.py:net"',
        'arch = "evil:net"',
        'data = "evil.py:factory"',
        'data = "evil:factory"',
        'data = "data.toml"',
        'metric = "evil.py:metric"',
        'loss = "evil:loss"',
    ],
)
def test_a_recipe_that_names_code_is_refused_and_runs_nothing(here: Path, line: str):
    Path("data.toml").write_text('source = "evil.py:factory"\n')
    rest = "" if line.startswith("data") else 'data = "digits"\n'
    Path("recipe.toml").write_text(f'model = "model.pt"\ntarget = "params=0.5"\n{rest}{line}\n')
    result = run("--recipe", "recipe.toml")
    assert result.exit_code == 2 and "names code" in result.stderr and "--trust-recipe" in result.stderr
    assert not Path("it-ran").exists() and not Path("out").exists()


def test_trust_is_nothing_that_a_file_can_give(here: Path):
    Path("recipe.toml").write_text('model = "model.pt"\narch = "evil.py:net"\ntrust_recipe = true\ntrust_pickle = true\n')
    with pytest.raises(BadInput, match="names code"):
        from_toml(Path("recipe.toml"))
    recipe = from_toml(Path("recipe.toml"), trust_recipe=True)
    assert recipe.arch == "evil.py:net" and recipe.trust_recipe and not recipe.trust_pickle


def test_a_setting_that_is_typed_makes_up_for_the_one_in_the_file(here: Path):
    Path("recipe.toml").write_text('model = "model.pt"\nmetric = "evil.py:metric"\n')
    assert from_toml(Path("recipe.toml"), metric="top1").metric == "top1"


@pytest.mark.parametrize(
    ("name", "value", "is_code"),
    [
        ("arch", "torchvision:resnet18", False),
        ("arch", "timm:resnet18", False),
        ("arch", "net.py:Net", True),
        ("arch", "compress.commands.demo:digits_net", False),
        ("arch", "compress.demo:digits_net", False),
        ("arch", "compress.demo:digits_net.__globals__", True),
        ("data", "torchvision:CIFAR10@data", False),
        ("data", "digits", False),
        ("data", "photos/train", False),
        ("data", "mine:factory", True),
        ("metric", "top1", False),
        ("metric", "mine:metric", True),
        ("loss", "bce", False),
        ("loss", "./mine.py:loss", True),
    ],
)
def test_what_is_code(name: str, value: str, is_code: bool):
    assert bool(code_in({name: value})) == is_code


def test_data_settings_that_name_code_need_trust(here: Path):
    Path("data.toml").write_text('source = "evil.py:factory"\n')
    with pytest.raises(BadInput, match=r"source = .*evil\.py:factory.*--trust-recipe"):
        open_data("data.toml")
    assert not Path("it-ran").exists()


def test_a_run_folder_runs_no_code_when_it_is_packed(here: Path):
    quick: dict[str, Any] = {
        "target": "params=0.5",
        "align": 1,
        "epochs": 0,
        "rounds": 5,
        "calibration": 40,
        "allow_doubtful": True,
    }
    compress.run("model.pt", out="out", data="digits", method="magnitude", **quick)
    recipe = Path("out/recipe.toml")
    recipe.write_text(recipe.read_text().replace('data = "digits"', 'data = "evil.py:factory"'))
    with pytest.raises(BadInput, match=r"It is code .*samples="):
        compress.package("out", out="package.tar.gz")
    assert not Path("it-ran").exists()
