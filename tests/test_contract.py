"""A contract alone: `--max-drop` finds the target, one rule judges it, and what nothing keeps is refused with what would."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import compress
from compress.commands.plan import _left_open
from compress.data import open_data
from compress.errors import BadInput, GateFailed, Infeasible
from compress.pipeline import contract
from compress.pipeline.contract import Look
from compress.pipeline.exports import lost_too_much, undecided
from compress.pipeline.held_out import Lost
from compress.recipe import make
from compress.refit import refit
from compress.report.promise import kept
from compress.report.records import Outcome, Quality

DENSE = Quality(metric="top1", value=0.90, samples=400)


def now(value: float, low: float, high: float) -> Quality:
    return Quality(metric="top1", value=value, samples=400, drop_ci95=(low, high))


@pytest.mark.parametrize(
    ("quality", "limit", "verdict", "enough"),
    [
        (now(0.897, 0.1, 0.5), 0.5, "pass", None),
        (now(0.88, 1.0, 3.0), 0.5, "fail", None),
        (now(0.89, -1.0, 3.0), 2.0, "cannot tell", 1600),  # half a width of 2 has to become 1
        (now(0.88, -2.0, 6.0), 0.0, "cannot tell", 1600),  # 4 has to become 2
        (now(0.89, -1.0, 3.0), 1.0, "cannot tell", None),  # no number of samples would
        (Quality(metric="top1", value=0.89, samples=400), 1.1, "pass", None),  # no interval: the figure decides
        (Quality(metric="top1", value=0.88, samples=400), 1.0, "fail", None),
    ],
)
def test_a_promise_is_kept_broken_or_not_to_be_told(quality: Quality, limit: float, verdict: str, enough: int | None):
    found = kept(DENSE, quality, limit, None)
    assert found.verdict == verdict
    assert found.enough == pytest.approx(enough, abs=1) if enough else found.enough is None


def test_about_how_many_samples_would_do_is_more_than_there_are():
    found = kept(DENSE, Quality(metric="top1", value=0.89, samples=1001, drop_ci95=(0.0, 2.0005)), 2.0, None)
    assert found.enough == 1100  # two digits of 1,002, upwards


def test_noise_passes_or_fails_as_the_recipe_says_and_is_told_either_way():
    unsure = now(0.89, -1.0, 3.0)
    for policy in ("pass", "fail"):
        recipe = make(model="a.pt", data="digits", target="macs=0.5", max_drop=2.0, on_noise=policy)
        (said,) = undecided(recipe, DENSE, unsure, None)
        assert said == (
            "Whether --max-drop 2 is kept cannot be told with 400 samples: 1.00 [-1.00, 3.00] points of top1 are lost. "
            "About 1,600 would do."
        )
        broken = lost_too_much(recipe, DENSE, unsure, None)
        assert (broken is None) == (policy == "pass")
        assert broken is None or (broken.reason == said and broken.outcome is Outcome.QUALITY_LOST)
        lost = now(0.87, 2.5, 3.5)
        assert undecided(recipe, DENSE, lost, None) == () and lost_too_much(recipe, DENSE, lost, None)


@pytest.mark.parametrize(
    ("dense", "value", "chance", "reason"),
    [
        (0.5, 0.5, 0.5, "the dense model itself is no better than guessing on this data"),
        (0.9, 0.1, 0.1, "the result is no better than guessing"),  # however much may be lost
        (1.0, 1.0, 0.5, "3 test samples are too few to tell"),
    ],
)
def test_of_models_that_guess_no_promise_is_kept(dense: float, value: float, chance: float, reason: str):
    samples = 3 if "3" in reason else 400
    before = Quality(metric="top1", value=dense, samples=samples)
    after = Quality(metric="top1", value=value, samples=samples, drop_ci95=(0.0, 0.0))
    found = kept(before, after, 100, chance)
    assert found.verdict == "cannot tell" and reason in found.said("top1", 100)
    for policy in ("pass", "fail"):
        recipe = make(model="a.pt", data="digits", target="macs=0.5", max_drop=100, on_noise=policy)
        assert reason in undecided(recipe, before, after, chance)[0]
        assert (lost_too_much(recipe, before, after, chance) is None) == (policy == "pass")
    # What is lost beyond doubt stays lost.
    assert kept(before, after.model_copy(update={"drop_ci95": (101.0, 102.0)}), 100, chance).verdict == "fail"


@pytest.mark.parametrize(
    ("settings", "looks"),
    [
        ({"max_drop": 1}, True),
        ({"max_drop": 1, "method": "magnitude", "minimize": "size"}, True),
        ({"max_drop": 1, "target": "macs=0.5"}, False),
        ({"max_drop": 1, "tolerance": 0.1}, False),
        ({"max_drop": 1, "plan": "plan.json"}, False),
        ({"max_drop": 1, "method": "easier"}, False),  # its own rule says when to stop
        ({"max_drop": 1, "method": "lottery"}, False),
        ({}, False),
    ],
)
def test_a_target_is_looked_for_where_only_the_contract_is_given(settings: dict[str, Any], looks: bool):
    recipe = make(model="a.pt", data="digits", **settings)
    assert contract.wanted(recipe) == looks
    assert (recipe.target is None) == (looks or "tolerance" in settings or "easier" in settings.values())


@pytest.mark.parametrize(("method", "said"), [("entropic", True), ("easier", False), ("depth", False)])
def test_a_plan_says_that_a_run_would_look_for_the_target_only_where_it_would(method: str, said: bool):
    notes = _left_open(make(model="a.pt", data="digits", max_drop=1, method=method), [])
    assert any("looks for the smallest model" in note for note in notes) == said


class Pretended(contract._Search):
    """Loses what a function of the target says; training wins half of it back."""

    curve: Any
    reachable = 0.0

    def __post_init__(self) -> None:
        self.tried, self.context = [], Silent()

    def _lost(self, target: str, train: bool) -> Lost:
        share = float(target.partition("=")[2])
        if share < self.reachable:
            raise Infeasible("below")
        lost = type(self).curve(share) / (2 if train else 1)
        return Lost(lost, lost - 0.2, lost + 0.2)  # a standard error of 0.1


class Silent:
    def progress(self, *_: Any) -> None: ...


def pretended(curve: Any, reachable: float = 0.0, **settings: Any) -> list[contract.Look]:
    kind = type("Kind", (Pretended,), {"curve": staticmethod(curve), "reachable": reachable})
    recipe = make(model="a.pt", data="digits", max_drop=1.0, **settings)
    return list(kind(recipe, (), None, None).looks())  # type: ignore[arg-type]


@pytest.mark.parametrize("edge", [0.03, 0.2, 0.41, 0.6, 0.9])
def test_the_smallest_target_that_keeps_is_found_to_six_percent(edge: float):
    looks = pretended(lambda share: 0.9 if share >= edge else 3.0, epochs=0)
    best = min(one.target for one in looks if one.kept)
    assert edge <= best <= edge * contract._CLOSE**1.01 and len(looks) <= 9


def test_a_standard_error_is_kept_in_hand():
    assert not any(one.kept for one in pretended(lambda _: 0.95, epochs=0))
    assert all(one.kept for one in pretended(lambda _: 0.85, epochs=0))


def test_what_training_wins_back_makes_the_model_smaller():
    # Untrained 1 point is lost at 0.5, trained at 0.25.
    looks = pretended(lambda share: 0.45 / share, epochs=1)
    untrained = min(one.target for one in looks if one.kept and not one.trained)
    trained = [one for one in looks if one.trained]
    assert len(trained) == 3 and trained[0].kept and not all(one.kept for one in trained)
    smallest, broken = min(t.target for t in trained if t.kept), max(t.target for t in trained if not t.kept)
    assert untrained / smallest > 1.75 and smallest / broken < 1.8, "what training wins back is looked for to either side"


def test_targets_below_what_the_groups_allow_count_as_broken():
    looks = pretended(lambda _: 0.0, reachable=0.35, epochs=0)
    assert 0.35 <= min(one.target for one in looks if one.kept) < 0.35 * 1.07


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net that has learned digits, with room for removal."""
    path = tmp_path_factory.mktemp("net") / "net.pt"
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(384, 10))
    data = open_data("digits", shape=(1, 8, 8))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for epoch in range(4):
        for batch in data.train.batches(64, shuffle=True, epoch=epoch):
            loss = nn.functional.cross_entropy(model(*batch.inputs), batch.target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.save(model.eval(), path)
    return path


QUICK = {"data": "digits", "epochs": 0, "rounds": 5, "calibration": 200, "device": "cpu", "align": 1}


def test_a_run_finds_its_target_with_one_look_at_the_images_and_resumes_without_looking(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    calls = Counter[str]()
    real = refit.statistics
    monkeypatch.setattr(refit, "statistics", lambda *a, **k: calls.update(["statistics"]) or real(*a, **k))
    out = tmp_path / "out"
    report = compress.run(net, max_drop=4, out=out, **QUICK)
    found = json.loads((out / "search.json").read_text())
    smallest = min(one["target"] for one in found["looks"] if one["kept"])
    assert report.target == f"macs={smallest:.4f}" and smallest < 0.9
    assert calls["statistics"] == 3  # for all looks together, and for two stages of the run
    assert report.result.macs <= report.dense.macs * smallest * 1.01
    assert any("The target was looked for" in note for note in report.notes)
    again = compress.run(net, max_drop=4, out=out, resume=True, **QUICK)
    assert calls["statistics"] == 3 and again.target == report.target and again.plan_sha256 == report.plan_sha256
    (out / "search.json").write_text("{")
    with pytest.raises(BadInput, match=r"search.json cannot be read .*force=True"):
        compress.run(net, max_drop=4, out=out, resume=True, **QUICK)


def test_what_nothing_keeps_is_refused_with_what_would(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(contract._Search, "_lost", lambda *_: Lost(1.5, 1.1, 1.9))
    with pytest.raises(Infeasible) as refused:
        compress.run(net, max_drop=1, out=tmp_path / "out", **QUICK)
    assert str(refused.value).startswith("No target keeps max_drop=1: at macs=")
    assert "loses 1.50 [1.10, 1.90] points of held-out quality. Allow max_drop=1.7, or train (epochs=3)." in str(refused.value)
    assert refused.value.exit_code == 3
    monkeypatch.undo()
    compress.run(net, max_drop=30, out=tmp_path / "out", **QUICK)  # what was tried is not in the way


def test_what_samples_cannot_tell_is_said_so(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(contract._Search, "_lost", lambda *_: Lost(0.5, -1.5, 2.5))
    with pytest.raises(Infeasible, match=r"error \(1.00\) has to be to spare: 144 held-out samples cannot tell 1 from"):
        compress.run(net, max_drop=1, out=tmp_path / "out", **QUICK)
    monkeypatch.setattr(contract._Search, "_lost", lambda *_: Lost(0.25, -0.25, 0.7502))
    with pytest.raises(Infeasible, match=r"cannot tell 0.5 from more. Give more samples, or allow max_drop=0.51"):
        compress.run(net, max_drop=0.5, out=tmp_path / "out", **QUICK)


@pytest.mark.parametrize(("minimize", "align", "taken"), [("macs", None, 1), ("size", 16, 16), ("latency", None, None)])
def test_counts_are_rounded_for_time_alone(minimize: str, align: int | None, taken: int | None):
    assert contract.unrounded(make(minimize=minimize, align=align)).align == taken


def test_what_was_not_rounded_and_what_samples_cannot_tell_is_said():
    looks = [Look(0.5, 0.69, -0.6, 2.0, False, False), Look(0.84, 0.0, -1.0, 1.0, False, True)]
    said = contract._said(make(max_drop=2.0, minimize="macs"), looks, True, 144)
    assert "Smaller ones lost no more than that, and 144 held-out samples cannot tell; more would." in said
    assert "multiples of 8 make macs no smaller; they may be slower: --align 8 rounds them." in said
    said = contract._said(make(max_drop=0.5, minimize="latency"), looks, False, 144)
    assert said.endswith("a standard error to spare.")


def test_a_run_and_the_gate_judge_by_one_rule(net: Path, tmp_path: Path):
    out = tmp_path / "out"
    with pytest.raises(GateFailed, match=r"loses \d+\.\d\d \[\d+\.\d\d, \d+\.\d\d\] points of top1, more than max_drop=0.1"):
        compress.run(net, target="params=0.03", max_drop=0.1, out=out, **QUICK)
    ruling = compress.gate(out, max_drop=0.1)
    assert [r.verdict for r in ruling.rules] == ["fail"]
    written = (out / "report.json").stat().st_mtime_ns
    with pytest.raises(GateFailed, match=r"more than max_drop=0\.1") as again:  # finished, and as broken as before
        compress.run(net, target="params=0.03", max_drop=0.1, out=out, resume=True, **QUICK)
    assert again.value.report is not None and (out / "report.json").stat().st_mtime_ns == written
