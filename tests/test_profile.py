"""`--profile`: traces and a table of where the time of a run went."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import compress
from compress.errors import BadInput
from compress.pipeline import profiling
from compress.pipeline.profiling import Profiler


def work() -> None:
    torch.randn(64, 64) @ torch.randn(64, 64)


def test_a_part_is_told_by_its_operations(tmp_path: Path):
    profiler = Profiler(tmp_path / "profile")
    with profiler.on("choose channels"):
        work()
        with profiler.on("inside"):  # a part inside another is that other's
            work()
    with profiler.on("choose channels"):  # looked at already
        work()
    names = sorted(path.name for path in (tmp_path / "profile").iterdir())
    assert names == ["00-choose-channels.json.gz", "profile.md"]
    trace = json.loads(gzip.decompress((tmp_path / "profile" / names[0]).read_bytes()))
    assert sum(event.get("name") == "aten::mm" for event in trace["traceEvents"]) == 2
    text = (tmp_path / "profile" / "profile.md").read_text()
    assert "## choose channels" in text and "| `aten::mm` | 2 |" in text and "looked at all of them" in text


def test_only_the_first_seconds_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(profiling, "_SECONDS", 0.0)
    profiler = Profiler(tmp_path)
    told = profiler.through(lambda *_: None)
    with profiler.on("training"):
        work()
        told("epoch", 0.5, "")
        for _ in range(200):
            work()
            told("epoch", 0.6, "")
    trace = json.loads(gzip.decompress((tmp_path / "00-training.json.gz").read_bytes()))
    assert sum(event.get("name") == "aten::mm" for event in trace["traceEvents"]) == 1


def test_what_fails_is_told_all_the_same(tmp_path: Path):
    profiler = Profiler(tmp_path)
    with pytest.raises(ZeroDivisionError), profiler.on("remove"):
        raise ZeroDivisionError
    assert "## remove" in (tmp_path / "profile.md").read_text()
    with profiler.on("next"):
        work()
    assert (tmp_path / "01-next.json.gz").exists()


def test_a_run_leaves_its_profile_and_replaces_it(tmp_path: Path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()
    data = (torch.randn(60, 1, 6, 6), torch.arange(60) % 3)
    settings = {"epochs": 0, "export": "", "method": "magnitude", "allow_doubtful": True, "rounds": 5, "out": tmp_path / "out"}
    compress.run(net, data=data, target="macs=0.6", profile=True, **settings)
    text = (tmp_path / "out" / "profile" / "profile.md").read_text()
    assert "## remove" in text and "## counting quality" in text and "aten::" in text
    compress.run(net, data=data, target="macs=0.6", force=True, **settings)
    assert not (tmp_path / "out" / "profile").exists(), "it is part of the run that was replaced"
    with pytest.raises(BadInput, match="profile=True does not go with dry_run=True"):
        compress.run(net, data=data, dry_run=True, profile=True)
