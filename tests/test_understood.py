"""What a refusal says: what was understood, in words of this project, and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import compress
from compress.cli.main import cli
from compress.data import settings as data_settings
from compress.errors import BadInput
from compress.recipe import make
from compress.report import records
from compress.report.records import Quality
from compress.user.wording import many, needed
from tests.runs import edited, made_run

QUICK: dict[str, Any] = {"target": "macs=0.5", "epochs": 0, "rounds": 5, "calibration": 40, "allow_doubtful": True}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3)).eval()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": -1}, "--epochs is -1; needed is a number of 0 or more."),
        ({"distill": 2}, "--distill is 2; needed is a number of 1 or less."),
        ({"lr": 0}, "--lr is 0; needed is a number above 0."),
        ({"prune": 1}, "--prune is 1; needed is a number below 1."),
        ({"threads": "all"}, "--threads is 'all'; needed is a whole number."),
        ({"threads": 1.5}, "--threads is 1.5; needed is a whole number."),
        ({"lr": "fast"}, "--lr is 'fast'; needed is a number."),
        ({"cheap": "often"}, "--cheap is 'often'; needed is true or false."),
        ({"arch": 3}, "--arch is 3; needed is a text."),
        ({"arch_kwargs": 3}, "--arch-kwargs is 3; needed is a table of names and values."),
        ({"input_shape": 3}, "--input-shape is 3; needed is a list."),
        ({"variants": []}, "--variants is []; needed is 1 or more values, not 0."),
        ({"order": "none"}, "--order is 'none'; needed is one of 'width-depth', 'depth-width' or 'auto'."),
        ({"target": "macs=0.5", "tolerance": 0.1}, "--target macs=0.5 and --tolerance 0.1 both say how much is removed."),
    ],
)
def test_a_setting_out_of_range_is_told_in_words_of_this_project(settings: dict[str, Any], said: str):
    with pytest.raises(BadInput) as refused:
        make(model="a.pt", data="digits", **settings)
    assert str(refused.value).startswith(said) and "nput should" not in str(refused.value)


def test_so_are_data_settings_and_reports(tmp_path: Path):
    with pytest.raises(BadInput, match=r"data.toml: channels is 2; needed is one of 1 or 3\."):
        data_settings.make("data.toml", channels=2)
    with pytest.raises(BadInput, match=r"data.toml: mean and std go together, with one value per channel each\."):
        data_settings.make("data.toml", mean=(0.5,))
    text = (made_run(tmp_path) / "report.json").read_text()
    with pytest.raises(BadInput, match=r"stages.0.params: needed is a number of 0 or more, in a file of schema 2"):
        records.from_json(edited(text, '"params": 55', '"params": -1'))
    assert needed({"type": "something_new", "msg": "Whatever"}) == "needed is another value"


def test_one_thing_is_no_plural():
    assert (many(1, "channel"), many(1234, "channel"), many(0, "entry", "entries")) == (
        "1 channel",
        "1,234 channels",
        "0 entries",
    )


def test_channels_that_come_last_in_memory_are_put_first_by_a_line():
    x = torch.rand(60, 8, 8, 1)
    with pytest.raises(BadInput, match=r"Channels come first: x\.permute\(0, 3, 1, 2\) in torch, x\.transpose"):
        compress.run(net(), data=(x, torch.arange(60) % 3), **QUICK)


def test_classes_as_real_numbers_are_made_whole_by_a_line():
    x, y = torch.rand(60, 1, 8, 8), (torch.arange(60) % 3).float()
    with pytest.raises(BadInput, match=r"shape \(1,\), the model's outputs \(3,\)\. .* y\.long\(\) in torch, y\.astype\(int\)"):
        compress.run(net(), data=(x, y), **QUICK)
    with pytest.raises(BadInput, match=r"Give a value for each output, or metric and loss of your own"):
        compress.run(net(), data=(x, y + 0.5), **QUICK)


def test_a_tracker_that_nobody_knows_is_answered_with_a_guess():
    with pytest.raises(BadInput, match=r"log is '?\"?wanb.*Did you mean wandb\?|Did you mean wandb\?"):
        compress.run("a.pt", data="digits", log="wanb")


def test_a_limit_that_looks_like_a_fraction_is_told_as_what_it_was_taken_for(tmp_path: Path):
    report = records.read(made_run(tmp_path))[0]
    quality = Quality(metric="top1", value=0.5, samples=10, drop_ci95=(0.0, 0.0))
    stages = (report.dense, report.dense.model_copy(update={"stage": "remove", "quality": quality, "params": 9}))
    (tmp_path / "report.json").write_text(report.model_copy(update={"stages": stages}).to_json())
    told = compress.gate(tmp_path, max_drop=0.01).notes
    assert "--max-drop 0.01 was taken as 0.01 of 100 points; for 1 of them give --max-drop 1." in told
    assert compress.gate(tmp_path, max_drop=1).notes == compress.gate(tmp_path, max_drop=0).notes == ()
    with pytest.raises(BadInput, match=r"max_drop=-1|max_drop is -1; needed are points that may be lost, 0 or more"):
        compress.gate(tmp_path, max_drop=-1)


@pytest.mark.parametrize("content", [b"hello\n", bytes(np.random.default_rng(0).integers(0, 255, 3000, np.uint8))])
def test_a_file_that_is_no_package_is_called_that(content: bytes, tmp_path: Path):
    (tmp_path / "model.onnx").write_bytes(content)
    (tmp_path / "empty").mkdir()
    for name, said in (("model.onnx", "is no package, or"), ("empty", "is no unpacked package: it has no SHA256SUMS")):
        result = CliRunner().invoke(cli, ["verify", str(tmp_path / name)])
        assert result.exit_code == 2 and said in result.stderr and "header" not in result.stderr


def test_a_model_is_not_timed_against_itself(tmp_path: Path):
    with pytest.raises(BadInput, match=r"a.onnx is given twice; needed is each model once"):
        compress.bench(tmp_path / "a.onnx", tmp_path / "b.onnx", str(tmp_path / "." / "a.onnx"))
