"""A target in time or memory: the share of MACs is looked for at which the model takes that much."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.api import plan, run
from compress.artifact import Artifact
from compress.errors import BadInput, Infeasible, Unsteady
from compress.graph.trace.trace import trace
from compress.measure.asked import parse_target
from compress.measure.cost import cost
from compress.measure.latency import Timing
from compress.pipeline import measured_target, time_target
from compress.pipeline.latency_cache import LatencyCache

FIXED = 0.2
"""Of the dense model's time, whatever is removed."""


def macs(one: Artifact) -> float:
    return cost(one.module, one.inputs).macs


def by_macs(_: LatencyCache, one: Artifact, other: Artifact) -> Timing:
    """A device on which the whole model of `whole` MACs takes 10 ms, a fifth of it for nothing."""
    times = [FIXED + (1 - FIXED) * (macs(model) / WHOLE[0]) ** 0.8 for model in (one, other)]
    ratio = times[1] / times[0]
    return Timing(10 * times[0], ratio, (ratio / 1.02, ratio * 1.02), 10)


WHOLE = [1.0]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    torch.manual_seed(0)
    inner = [part for _ in range(3) for part in (nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())]
    net = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), *inner, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
    )
    torch.save(net, tmp_path / "net.pt")
    monkeypatch.setattr(LatencyCache, "race", by_macs)
    # The layers take what this machine makes of them, which that device knows nothing of.
    monkeypatch.setattr(time_target, "possible", lambda *_: False)
    WHOLE[0] = whole(net)
    return str(tmp_path / "net.pt")


def whole(net: nn.Module) -> float:
    x = torch.zeros(1, 1, 8, 8)
    return cost(trace(net.eval(), (x,)), (x,)).macs


SETTINGS = {
    "data": "digits", "epochs": 0, "export": "", "rounds": 5, "align": 1, "method": "magnitude", "device": "cpu",
    "allow_doubtful": True,
}  # fmt: skip


@pytest.mark.parametrize(("target", "share"), [("latency=0.6", 0.6), ("latency=4ms", 0.4)])
def test_the_result_takes_as_long_as_was_asked_for(model: str, tmp_path: Path, target: str, share: float):
    report = run(model, target=target, out=tmp_path / "out", **SETTINGS)
    left = report.result.macs / report.dense.macs
    assert FIXED + (1 - FIXED) * left**0.8 == pytest.approx(share, rel=0.04)
    assert report.target is not None and report.target.startswith("macs=")
    assert any(f"The target {target} is {share:g} of the dense model's time" in note for note in report.notes)
    looks = json.loads((tmp_path / "out/search.json").read_text())
    assert looks["unit"] == "latency" and 1 < len(looks["looks"]) <= 9


@pytest.mark.parametrize("luck", [0.6, 0.58])
def test_a_time_that_was_met_by_luck_is_not_taken(model: str, luck: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lucky: list[float] = []

    def noisy(cache: LatencyCache, one: Artifact, other: Artifact) -> Timing:
        timing = by_macs(cache, one, other)
        if not lucky and timing.ratio < 1 / 0.62:
            lucky.append(1 / timing.ratio)
            return replace(timing, ratio=1 / luck)
        return timing

    monkeypatch.setattr(LatencyCache, "race", noisy)
    report = run(model, target="latency=0.6", out=tmp_path / "out", **SETTINGS)
    left = FIXED + (1 - FIXED) * (report.result.macs / report.dense.macs) ** 0.8
    assert lucky and lucky[0] > 0.63 and left == pytest.approx(0.6, rel=0.04)


def test_a_run_that_goes_on_looks_no_second_time(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    first = run(model, target="latency=0.6", out=tmp_path / "out", **SETTINGS)
    (tmp_path / "out/report.json").unlink()
    monkeypatch.setattr(measured_target._Search, "looks", lambda _: pytest.fail("looked again"))
    again = run(model, target="latency=0.6", out=tmp_path / "out", resume=True, **SETTINGS)
    assert again.target == first.target and again.plan_sha256 == first.plan_sha256


def test_what_no_removal_reaches_says_how_quick_the_quickest_is(model: str, tmp_path: Path):
    with pytest.raises(Infeasible, match=r"is 0.15 of the dense model's time, and removing channels comes down to 0\.2"):
        run(model, target="latency=0.15", out=tmp_path / "out", **SETTINGS)


def test_more_time_than_the_dense_model_takes_removes_nothing(model: str, tmp_path: Path):
    with pytest.raises(Infeasible, match="no less than the 10 ms"):
        run(model, target="latency=12ms", out=tmp_path / "out", **SETTINGS)


def test_nothing_is_aimed_at_on_a_busy_machine(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(LatencyCache, "race", lambda *_: Timing(1.0, 2.0, (1.9, 2.1), 10, calm=0.1))
    with pytest.raises(Unsteady, match="while the machine is busy"):
        run(model, target="latency=0.5", out=tmp_path / "out", **SETTINGS)


PLANNED = {name: value for name, value in SETTINGS.items() if name in ("data", "method", "device", "align", "allow_doubtful")}


def test_a_plan_alone_is_made_for_a_time(model: str, tmp_path: Path):
    found = plan(model, target="latency=0.6", out=tmp_path / "plan.json", **PLANNED)
    left = found.planned.macs / found.dense.macs
    assert FIXED + (1 - FIXED) * left**0.8 == pytest.approx(0.6, rel=0.04)
    assert any("is 0.6 of the dense model's time" in note for note in found.notes)


@pytest.mark.parametrize(("target", "batch"), [("memory=0.6", 1), ("memory={}", 1), ("memory=0.5", 16)])
def test_the_result_needs_as_much_memory_as_was_asked_for(model: str, tmp_path: Path, target: str, batch: int):
    wanted = 0.6 * whole_peak(model, batch) if "{" in target else None
    report = run(model, target=target.format(f"{(wanted or 0) / 1e6:.6f}MB"), batch=batch, out=tmp_path / "out", **SETTINGS)
    left = report.result.peak_memory_bytes / report.dense.peak_memory_bytes
    assert left == pytest.approx(0.5 if batch > 1 else 0.6, rel=0.05)  # of few channels each counts
    assert any("of the dense model's peak memory" in note for note in report.notes)
    assert json.loads((tmp_path / "out/search.json").read_text())["unit"] == "memory"


def test_counts_are_not_rounded_for_memory_unless_it_is_said_so(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("compress.pipeline.rounding.pays", lambda *_: True)
    open_ = {name: value for name, value in SETTINGS.items() if name != "align"}
    report = run(model, target="memory=0.6", out=tmp_path / "out", **open_)
    assert report.result.peak_memory_bytes / report.dense.peak_memory_bytes == pytest.approx(0.6, rel=0.05)
    assert any("multiples of 8 take no less memory" in note for note in report.notes)
    rounded = run(model, target="memory=0.6", align=8, out=tmp_path / "rounded", **open_)
    assert rounded.result.peak_memory_bytes <= 0.6 * 1.03 * rounded.dense.peak_memory_bytes


def whole_peak(model: str, batch: int) -> int:
    x = torch.zeros(1, 1, 8, 8)
    return cost(trace(torch.load(model, weights_only=False).eval(), (x,)), (x,)).peak_memory_bytes(batch)


def test_memory_is_planned_without_timing(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(LatencyCache, "race", lambda *_: pytest.fail("timed"))
    found = run(model, target="memory=0.6", dry_run=True, **PLANNED)
    assert found.planned.macs < found.dense.macs
    with pytest.raises(Infeasible, match=r"is no less than the [\d.]+ MB of the dense model"):
        plan(model, target="memory=1GB", out=tmp_path / "plan.json", **PLANNED)


def test_a_dry_run_and_methods_without_a_size_refuse_a_time(model: str, tmp_path: Path):
    with pytest.raises(BadInput, match="which a dry run does not do"):
        run(model, target="latency=0.5", dry_run=True, **PLANNED)
    with pytest.raises(BadInput, match="which lottery does not size"):
        run(model, target="latency=0.5", out=tmp_path / "out", **{**SETTINGS, "method": "lottery", "epochs": 1, "prune": 0.5})


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("latency=0.5", ("latency", 0.5)),
        ("latency=5ms", ("ms", 5.0)),
        ("latency=300us", ("ms", 0.3)),
        ("memory=0.5", ("memory", 0.5)),
        ("memory=20MB", ("peak bytes", 2e7)),
    ],
)
def test_times_are_read(text: str, meant: tuple[str, float]):
    unit, amount = parse_target(text)
    assert unit == meant[0] and amount == pytest.approx(meant[1])


@pytest.mark.parametrize("text", ["latency=5", "latency=0ms", "latency=1.0", "latency=-1ms", "latency=5MB", "latency="])
def test_a_time_that_is_none_is_refused(text: str):
    with pytest.raises(BadInput, match=r"latency=5ms|a fraction lies above 0 and below 1"):
        parse_target(text)
