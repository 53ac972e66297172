"""The last line of a run names what is there, and where the model has no class-free form, how to go on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import compress
from compress.cli.closing import next_command, print_report
from compress.errors import UnsupportedModel
from compress.report.promise import kept
from compress.report.records import ExportRecord
from compress.report.rules import Ruling
from compress.report.rulings import markdown, sentence
from compress.user import files
from tests.test_gate import latency, quality, report, stage

NET = """
from torch import nn
def net():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(8, 3))
"""


def test_the_closing_line_promises_no_file_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)])
    torch.save(model.state_dict(), "model.pt")
    random = np.random.default_rng(0)
    np.savez("data.npz", x=random.integers(0, 255, (60, 8, 8), dtype=np.uint8), y=np.arange(60) % 3)

    def refuse(*_: object) -> None:
        raise UnsupportedModel("'zeros' cannot be stored without code.")

    monkeypatch.setattr("compress.pipeline.stepwise.save", refuse)  # of a stage
    monkeypatch.setattr("compress.pipeline.final_report.save", refuse)
    settings = {
        "method": "magnitude",
        "target": "macs=0.5",
        "epochs": 0,
        "depth": 0,
        "align": 1,
        "rounds": 5,
        "calibration": 32,
        "device": "cpu",
    }
    report = compress.run("model.pt", arch="net.py:net", data="data.npz", out="out", **settings)
    print_report(report, "out")
    said = capsys.readouterr().out
    assert not Path("out/model.compressed").exists()
    assert "no model.compressed. The exported files and plan.json hold the result" in said
    assert any("No model.compressed was written: 'zeros'" in note for note in report.notes)
    Path("out/model.compressed").mkdir()
    print_report(report, "out")
    assert "model.compressed (to go on in torch)" in capsys.readouterr().out


def test_a_limit_that_nothing_could_be_told_of_is_not_told_as_passed():
    unsure, passes = Ruling("max-drop", "cannot tell", "0.30", "0.40"), Ruling("max-size", "pass", "1", "2")
    assert sentence([unsure], True) == "Undecided: 1 inconclusive, which --on-noise fail refuses."
    assert "gate: undecided" in markdown([unsure], True)
    assert sentence([passes, unsure], True) == "Passed: 1 passed, 1 inconclusive, which --on-noise fail refuses."
    assert sentence([unsure], False) == "Failed: 1 inconclusive." and sentence([passes], True) == "Passed: 1 passed."


def test_an_undecided_limit_is_told_with_its_reason_under_quiet(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    dense, now = report().dense.quality, report().result.quality
    assert dense is not None and now is not None
    reason = kept(dense, now, 0.4, None).said("top1", 0.4)
    made = report(max_drop=0.4, undecided=True, warnings=(reason,))
    for quiet in (True, False):
        print_report(made, tmp_path, quiet)
        said = " ".join(capsys.readouterr().out.split())
        assert "Whether it kept --max-drop 0.4 cannot be told." in said and said.count(reason) == 1


def test_a_result_that_lost_points_is_not_sent_to_a_gate_that_it_fails(tmp_path: Path):
    export = ExportRecord(format="onnx", path="model.onnx", sha256="0" * 64)
    for drop, proposed in (((4.0, 5.8), "compress report"), ((0.1, 0.45), "compress gate")):
        now = stage("finetune", 0.25, latency(1.9, 1.8, 2.0), quality(0.93 - sum(drop) / 200, drop))
        assert next_command(report(now, exports=(export,)), tmp_path).startswith(proposed)
    (tmp_path / "recipe.toml").write_text('model = "m.pt"\ndata = "digits"\nepochs = 3\n')
    now = stage("finetune", 0.25, latency(1.9, 1.8, 2.0), quality(0.881, (4.0, 5.8)))
    assert "--epochs 6" in next_command(report(now, exports=(export,)), tmp_path)
    Path(f"{tmp_path}-longer").mkdir()
    assert next_command(report(now, exports=(export,)), tmp_path).endswith(f"--out {tmp_path}-longer-2")


def test_a_line_to_copy_names_a_place_where_nothing_is_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert files.elsewhere("package", ".tar.gz") == []
    Path("package.tar.gz").touch()
    assert files.elsewhere("package", ".tar.gz") == ["--out", "package-2.tar.gz"]
