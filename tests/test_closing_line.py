"""The last line of a run names what is there, and where the model has no class-free form, how to go on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import compress
from compress.cli.closing import print_report
from compress.errors import UnsupportedModel

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

    monkeypatch.setattr("compress.pipeline.run.save", refuse)  # of a stage
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
