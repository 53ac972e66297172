"""Runs beside each other: what the table says, who is on the front, and what is no fair comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from runs import ENVIRONMENT
from torch import nn

import compress
from compress.cli.main import cli
from compress.commands import methods_run
from compress.edits import Linearize, from_json
from compress.errors import BadInput
from compress.recipe import make
from compress.report.comparison import LEGEND, cells, compared, markdown, spans
from compress.report.records import Latency, Quality, Report, StageRecord


def report(method: str, speed: float, top1: float, **more: Any) -> Report:
    def stage(name: str, ratio: float, value: float, params: int, macs: int = 1000) -> StageRecord:
        latency = Latency(runtime="ort", batch=1, threads=1, p50_ms=1 / ratio, ratio=ratio, ci95=(0.9 * ratio, 1.1 * ratio))
        quality = Quality(metric=more.get("metric", "top1"), value=value, samples=100, drop_ci95=(0.5, 1.5))
        return StageRecord(
            stage=name,
            params=params,
            macs=macs,
            file_bytes=4 * params,
            peak_memory_bytes=1,
            latency=latency,
            quality=quality,
            seconds=2,
        )

    dense = stage("dense", 1, 0.9, more.get("params", 100))
    environment = ENVIRONMENT.model_copy(update={"cpu": more.get("cpu", "a processor")})
    stages = (dense, stage("finetune", speed, top1, 50, more.get("macs", 1000)))
    return Report(
        method=method, verdict="", seed=0, environment=environment, stages=stages, target=more.get("target", "params=0.5")
    )


def test_who_is_beaten_in_both_is_not_on_the_front():
    found = compared(
        {
            "fast": report("fast", 3, 0.80),
            "good": report("good", 2, 0.90),
            "bad": report("bad", 2, 0.85),
            "twin": report("twin", 3, 0.8),
        },
        {},
    )
    assert {run.run: run.front for run in found.runs} == {"fast": True, "good": True, "bad": False, "twin": True}
    assert not found.warnings
    assert next((s.name, s.x, s.y) for s in found.picture.series) == ("fast", (3.0,), (80.0,))
    assert found.picture.series[-1].name == "Pareto front" and found.picture.series[-1].x == (2.0, 3.0, 3.0)
    assert found.picture.levels == {"dense": 90.0}


def test_a_row_says_shares_intervals_and_reasons():
    found = compared({"fast": report("entropic", 3, 0.80)}, {"lottery": "The data has no labels."})
    assert cells(found)[0] == (
        "fast", "entropic", "50.0%", "100.0%", "200 B", "3.00 [2.70, 3.30]", "80.00 %", "-10.00 [-1.50, -0.50]", "4.0 s", "yes",
    )  # fmt: skip
    assert cells(found)[1][0] == "lottery" and cells(found)[1][-1] == "The data has no labels."
    assert "The data has no labels. |" in markdown(found, None) and "![" not in markdown(found, None)


def test_a_run_that_missed_its_budget_is_not_held_against_those_that_reached_it():
    """One ended at 35.6 % of the MACs where the other had 49.9: less is always faster."""
    made = {
        "fast": report("fast", 3, 0.80, target="macs=0.5", macs=356),
        "good": report("good", 2, 0.90, target="macs=0.5", macs=499),
    }
    found = compared(made, {})
    assert [(run.front, run.missed, run.reached) for run in found.runs] == [(None, True, 0.356), (None, False, 0.499)]
    rows = cells(found)
    assert [(row[3], row[-1]) for row in rows] == [("35.6% *", "-"), ("49.9%", "-")]
    assert found.warnings == ("fast came out at macs=0.356, its target is macs=0.5: more than 2 % off.",)
    assert [series.name for series in found.picture.series] == ["fast, at macs=0.356 for macs=0.5", "good"]  # and no front
    assert set(spans(found)) == {"fast, at macs=0.356 for macs=0.5", "good"}
    assert LEGEND.removeprefix("* ") in markdown(found, None)
    # Among those of an equal budget there is a front, and the one that missed it beats nobody.
    three = compared({**made, "worse": report("worse", 1.5, 0.85, target="macs=0.5", macs=495)}, {})
    assert [run.front for run in three.runs] == [None, True, False]
    # Equal is equal, also beside the target; within 2 % of it there is nothing to say.
    both = compared({**made, "good": report("good", 2, 0.90, target="macs=0.5", macs=360)}, {})
    assert [run.front for run in both.runs] == [True, True] and both.picture.series[-1].name == "Pareto front"
    near = compared(
        {"a": report("a", 3, 0.8, target="macs=0.5", macs=491), "b": report("b", 2, 0.7, target="macs=0.5", macs=509)}, {}
    )
    assert [run.front for run in near.runs] == [True, False] and not near.warnings and LEGEND not in markdown(near, None)


def test_runs_of_targets_of_their_own_are_held_against_each_other_and_bytes_are_told():
    made = {
        "a": report("a", 3, 0.8, target="macs=0.3", macs=300),
        "b": report("b", 2, 0.7, target="macs=0.5", macs=500),
        "c": report("c", 2, 0.7, target="params=0.3"),
        "d": report("d", 2, 0.7, target="size=0.1kB"),
        "e": report("e", 2, 0.9, target=None),
        "f": report("f", 1, 0.9, target="nobody=3"),
    }
    found = compared(made, {})
    assert [run.front for run in found.runs] == [True, False, False, False, True, False]
    assert [run.missed for run in found.runs] == [False, False, True, True, False, False]
    assert "c came out at params=0.5, its target is params=0.3: more than 2 % off." in found.warnings
    assert cells(found)[2][2] == "50.0% *" and cells(found)[3][4] == "200 B *"


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"params": 101}, "b began with another model than a."),
        ({"cpu": "another"}, "b was timed on another device than a"),
        ({"target": "macs=0.5"}, "b had the target macs=0.5, a params=0.5."),
    ],
)
def test_what_is_no_fair_comparison_is_said(other: dict[str, Any], said: str):
    found = compared({"a": report("x", 2, 0.8), "b": report("y", 2, 0.8, **other)}, {})
    assert any(said in warning for warning in found.warnings), found.warnings


def test_runs_of_two_metrics_are_refused():
    with pytest.raises(BadInput, match="measured by top1 and miou; needed is one metric"):
        compared({"a": report("x", 2, 0.8), "b": report("y", 2, 0.8, metric="miou")}, {})


def written(folder: Path, name: str, *args: Any, recipe: str = "", **more: Any) -> Path:
    (folder / name).mkdir()
    (folder / name / "report.json").write_text(report(name, *args, **more).to_json())
    (folder / name / "recipe.toml").write_text(recipe)
    return folder / name


def test_folders_are_compared_and_what_differs_in_their_recipes_is_told(tmp_path: Path):
    one = written(tmp_path, "one", 2, 0.8, recipe='epochs = 3.0\nmethod = "one"\n')
    two = written(tmp_path, "two", 3, 0.7, recipe='epochs = 5.0\nmethod = "two"\n')
    result = CliRunner().invoke(cli, ["compare", str(one), str(two), "--out", str(tmp_path / "both")])
    assert result.exit_code == 0, result.output
    assert "had other settings than" in result.output and "--epochs 5.0 for 3.0" in result.output
    assert {p.name for p in (tmp_path / "both").iterdir()} == {"compare.md", "compare.json", "compare.svg"}
    assert json.loads((tmp_path / "both/compare.json").read_text())["runs"][1]["speed_up"] == 3
    again = CliRunner().invoke(cli, ["compare", str(one), str(two), "--out", str(tmp_path / "both")])
    assert again.exit_code == 2 and "holds another comparison" in again.stderr
    alone = CliRunner().invoke(cli, ["compare", str(one)])
    assert alone.exit_code == 2 and "needed are two or more" in alone.stderr
    twice = CliRunner().invoke(cli, ["compare", str(one), str(one)])
    assert twice.exit_code == 2 and "Found 1 different run" in twice.stderr


def test_a_run_that_was_cut_off_is_named_and_the_others_are_compared(tmp_path: Path):
    folders = [written(tmp_path, name, *args) for name, *args in (("a", 2.0, 0.9), ("b", 1.5, 0.91))]
    (tmp_path / "c").mkdir()
    (tmp_path / "c/recipe.toml").write_text('method = "obs"\n')
    found = compress.compare(*folders, tmp_path / "c")
    assert [(run.run, bool(run.reason)) for run in found.runs] == [
        *((str(one), False) for one in folders),
        (str(tmp_path / "c"), True),
    ]
    assert "c was cut off and is left out; 'compress run --resume --out" in found.warnings[0]
    with pytest.raises(BadInput, match="c was cut off and without a result"):
        compress.compare(folders[0], tmp_path / "c")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(BadInput, match=r"nothing/report\.json cannot be read"):
        compress.compare(*folders, tmp_path / "nothing")


def test_a_missed_budget_is_told_at_a_shell_and_in_every_file(tmp_path: Path):
    one = written(tmp_path, "one", 3, 0.8, target="macs=0.5", macs=356)
    two = written(tmp_path, "two", 2, 0.9, target="macs=0.5", macs=499)
    result = CliRunner().invoke(cli, ["compare", str(one), str(two), "--out", str(tmp_path / "both")])
    assert result.exit_code == 0, result.output
    assert "35.6% *" in result.stdout and LEGEND in " ".join(result.stdout.split())
    told = json.loads((tmp_path / "both/compare.json").read_text())
    assert [(run["front"], run["missed"], run["target"]) for run in told["runs"]] == [
        (None, True, "macs=0.5"),
        (None, False, "macs=0.5"),
    ]
    assert "more than 2 % off" in (tmp_path / "both/compare.md").read_text()
    assert (tmp_path / "both/compare.svg").stat().st_size > 1000


# ---- several methods in one call -------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(192, 10)).eval()
    torch.save(net, "model.pt")
    return tmp_path


QUICK: dict[str, Any] = {
    "data": "digits", "target": "params=0.5", "align": 1, "epochs": 0, "rounds": 5, "calibration": 40, "export": (), "depth": 0,
    "allow_doubtful": True,
}  # fmt: skip
"""Of a net that was never trained."""


def test_counts_of_several_methods_are_not_rounded_unless_it_is_said_so(here: Path):
    open_ = {name: value for name, value in QUICK.items() if name != "align"}
    for more, align in (({}, 1), ({"align": 8}, 8), ({"target": "latency=0.5"}, None)):
        recipe = make(model="model.pt", **{**open_, **more})
        assert methods_run._unrounded(recipe).align == align


def test_each_method_has_a_run_of_its_own_and_one_that_cannot_is_told(here: Path):
    found = compress.run("model.pt", methods="magnitude,state-entropy,lottery", out=here / "out", **QUICK)
    assert [(run.run, bool(run.reason)) for run in found.runs] == [
        ("magnitude", False),
        ("state-entropy", False),
        ("lottery", True),
    ]
    assert all(run.params is not None and run.params <= 0.5 for run in found.runs[:2])
    assert "--epochs above 0" in found.runs[2].reason
    assert [run.missed for run in found.runs[:2]] == [abs((run.params or 0) / 0.5 - 1) > 0.02 for run in found.runs[:2]]
    assert [run.target for run in found.runs[:2]] == ["params=0.5"] * 2
    assert (here / "out/magnitude/report.json").exists() and "lottery" in (here / "out/compare.md").read_text()
    with pytest.raises(BadInput, match="holds another comparison"):
        compress.run("model.pt", methods="magnitude,random", out=here / "out", **QUICK)
    stamp = (here / "out/magnitude/stages/01-analyze/stage.json").stat().st_mtime_ns
    again = compress.run("model.pt", methods=("magnitude", "random"), out=here / "out", resume=True, **QUICK)
    assert [run.run for run in again.runs] == ["magnitude", "random"]
    assert (here / "out/magnitude/stages/01-analyze/stage.json").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("methods", "more", "said"),
    [
        ("entropic,magnitud", {}, "methods names 'magnitud'; known are entropic"),
        ("entropic", {}, "needed are two or more"),
        ("entropic,magnitude", {"method": "random"}, "does not go with method="),
        ("entropic,magnitude", {"dry_run": True}, "does not go with dry_run=True"),
    ],
)
def test_methods_that_cannot_be_are_refused_before_anything_is_done(here: Path, methods: str, more: dict[str, Any], said: str):
    with pytest.raises(BadInput, match=said):
        compress.run("model.pt", methods=methods, out=here / "out", **(QUICK | more))
    assert not (here / "out").exists()


# ---- a run that begins with a plan -----------------------------------------------------------------------------------------


def test_a_plan_of_one_method_starts_another(here: Path):
    first = compress.run("model.pt", method="random", out=here / "first", **(QUICK | {"target": "params=0.8"}))
    warm = compress.run("model.pt", method="obs", plan="first/plan.json", out=here / "warm", **(QUICK | {"target": "params=0.4"}))
    assert [s.stage for s in warm.stages[:3]] == ["dense", "replay", "analyze"]
    assert warm.stages[1].params == first.result.params
    assert warm.result.params <= 0.4 * warm.dense.params
    edits = from_json((here / "warm/plan.json").read_text()).edits
    assert (
        edits[: len(from_json((here / "first/plan.json").read_text()).edits)]
        == from_json((here / "first/plan.json").read_text()).edits
    )
    assert warm.exactness is not None and warm.exactness.holds
    met = compress.run("model.pt", method="obs", plan="first/plan.json", out=here / "met", **(QUICK | {"target": "params=0.9"}))
    assert met.result.params == first.result.params
    assert any("meets the target params=0.9 already" in note for note in met.notes)


def test_merges_of_a_plan_are_left_to_the_method(here: Path):
    net = torch.load("model.pt", weights_only=False)
    net[1] = nn.Identity()
    torch.save(nn.Sequential(*[m for m in net if not isinstance(m, nn.Identity)]), "linear.pt")
    plan = {"edit": "merge", "layers": ["0", "1"]}
    (here / "plan.json").write_text(json.dumps({"schema": 1, "method": "depth", "align": 1, "edits": [plan]}))
    warm = compress.run("linear.pt", method="magnitude", plan="plan.json", out=here / "warm", **QUICK)
    assert any("Its 1 merges were left out" in note for note in warm.notes)


def test_a_plan_that_is_none_or_of_another_model_is_refused(here: Path):
    (here / "plan.json").write_text("[]")
    with pytest.raises(BadInput, match="The plan"):
        compress.run("model.pt", plan="plan.json", out=here / "out", **QUICK)
    with pytest.raises(BadInput, match=r"missing\.json cannot be read"):
        compress.run("model.pt", plan="missing.json", out=here / "out", **QUICK)
    (here / "plan.json").write_text(
        json.dumps({"schema": 1, "edits": [{"edit": "keep", "layer": "9", "channels": 4, "keep": [0]}]})
    )
    with pytest.raises(compress.errors.PlanMismatch):
        compress.run("model.pt", plan="plan.json", out=here / "out", **QUICK)
    assert not (here / "out").exists()


def test_lines_of_a_plan_come_along(here: Path):
    line = {"edit": "linearize", "layer": "1", "channels": 8, "slope": [0.5] * 8, "offset": [0.1] * 8}
    (here / "plan.json").write_text(json.dumps({"schema": 1, "edits": [line]}))
    compress.run("model.pt", method="magnitude", plan="plan.json", out=here / "warm", **QUICK)
    assert isinstance(from_json((here / "warm/plan.json").read_text()).edits[0], Linearize)


def test_a_result_that_guesses_is_not_on_the_front_and_beats_nobody():
    good, fast = report("good", 1.5, 0.85), report("fast", 9, 0.11)
    guessing = fast.model_copy(update={"chance": 0.1})
    found = compared({"good": good, "guessing": guessing}, {})
    assert {run.run: run.front for run in found.runs} == {"good": None, "guessing": False}
    assert "guessing: The result is no better than guessing." in found.warnings


def test_another_dense_model_is_told_with_its_figures():
    weak = report("weak", 2, 0.1)
    dense = weak.stages[0].model_copy(update={"quality": weak.stages[0].quality.model_copy(update={"value": 0.95})})  # type: ignore[union-attr]
    found = compared({"one": report("one", 2, 0.8), "other": weak.model_copy(update={"stages": (dense, weak.stages[1])})}, {})
    assert "its dense model has top1 95.00 %, there 90.00 %" in found.warnings[0]
