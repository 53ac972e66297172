"""What a stage says of itself is all that plans, iterations and the order of width and depth go by."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import compress
from compress import artifact as artifacts
from compress.artifact import Artifact, apply
from compress.cli.main import cli
from compress.edits import Keep, Plan
from compress.errors import BadInput
from compress.graph.trace.trace import trace
from compress.measure.device import placed
from compress.method_table import METHODS, Method, Step, step
from compress.pipeline.sequence import made, stages_of
from compress.recipe import Recipe, make
from compress.refit import refit
from compress.stage import Context, Decides, Stage, Traits

QUICK = {"data": "digits", "calibration": 60, "device": "cpu", "rounds": 5, "allow_doubtful": True}


@dataclass(frozen=True)
class Half:
    """A stage as the guide has one: it halves every group, and refits."""

    name: str = "half"
    traits: Traits = Traits(Decides.BEFORE_TRAINING, frozenset({"width"}), repeats=True)

    def needed(self, recipe: Recipe) -> bool:
        return True

    def check(self, artifact: Artifact, context: Context) -> None: ...

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        groups = artifact.channels.removable
        edits = [Keep(g.name, g.channels, tuple(range((g.channels + 1) // 2))) for g in groups if g.channels > 1]
        return refit.refitted(apply(Plan(tuple(edits)), artifact), context)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small net on disk, and the method `half` in the table."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 10)
    )  # fmt: skip
    torch.save(net.eval(), tmp_path / "model.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(METHODS, "half", Method((Half(), step("finetune"))))
    return "model.pt"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_step_of_the_table_is_a_stage_that_says_what_it_does(name: str):
    for each in METHODS[name].steps:
        stage = made(each)
        assert isinstance(stage, Stage) and isinstance(stage.traits, Traits)
        assert not isinstance(each, Step) or stage.name == each.name, "'compress methods' names the rows of the report"
        if stage.traits.removes:
            assert stage.traits.decides is not Decides.NOTHING


def test_a_stage_that_lacks_something_is_named_with_what_it_lacks():
    class Empty:
        name = "empty"

    with pytest.raises(TypeError, match="The stage Empty lacks traits, needed, check, __call__"):
        made(Empty())


def test_a_method_of_ones_own_is_planned_with_and_without_a_fit(model: str):
    for decision in (
        compress.plan(model, out=None, method="half", **QUICK),
        compress.run(model, dry_run=True, method="half", **QUICK),
    ):
        assert [(e.layer, e.channels, len(e.keep)) for e in decision.plan.edits] == [("0", 8, 4), ("3", 6, 3)]
        assert decision.planned.params < decision.dense.params


def test_a_dry_run_fits_no_weight(model: str, monkeypatch: pytest.MonkeyPatch):
    def fit(*_: object, **__: object) -> None:
        raise AssertionError("a dry run looks at edits only")

    monkeypatch.setattr(refit, "both", fit)
    decision = compress.run(model, dry_run=True, method="half", **QUICK)
    assert len(decision.plan.edits) == 2
    with pytest.raises(AssertionError, match="edits only"):
        compress.plan(model, out=None, method="half", **QUICK)


def test_a_method_of_ones_own_goes_in_iterations(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(METHODS, "half", Method((Half(), step("finetune"))))
    names = [stage.name for stage in stages_of(make(method="half", iterations=3))]
    assert names == ["half", "finetune", "half 2", "finetune 2", "half 3", "finetune 3"]


@pytest.mark.parametrize("method", ["lottery", "sensitivity", "snip", "easier", "nepenthe"])
@pytest.mark.parametrize("dry", [True, False])
def test_what_is_decided_in_training_has_no_plan_beforehand_and_says_so(model: str, method: str, dry: bool):
    settings = {**QUICK, "method": method, "initial": "drawn"} if method == "lottery" else {**QUICK, "method": method}
    with pytest.raises(BadInput, match=rf"The method {method} decides while it trains \({method}\).*no plan beforehand"):
        compress.run(model, dry_run=True, **settings) if dry else compress.plan(model, out=None, **settings)


def test_a_dry_run_begins_with_the_plan_that_it_was_given(model: str):
    first = compress.plan(model, out="first.json", method="magnitude", target="params=0.6", **QUICK)
    before = {edit.layer: len(edit.keep) for edit in first.plan.edits}
    for decision in (
        compress.run(model, dry_run=True, method="magnitude", target="params=0.3", plan="first.json", **QUICK),
        compress.plan(model, out=None, method="magnitude", target="params=0.3", plan="first.json", **QUICK),
    ):
        edits = decision.plan.edits
        assert edits[: len(first.plan.edits)] == first.plan.edits
        later = edits[len(first.plan.edits) :]
        assert later and all(edit.channels == before.get(edit.layer, edit.channels) for edit in later)


def test_what_only_a_race_can_decide_is_named_where_a_dry_run_leaves_it_out(model: str):
    decision = compress.run(model, dry_run=True, method="entropic", target="params=0.5", **QUICK)
    assert any("Not in this plan: linearize, merge" in note for note in decision.notes)
    alone = compress.run(model, dry_run=True, method="depth", depth=100.0, **QUICK)
    assert not any("Not in this plan" in note for note in alone.notes)


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [("turns", "iterations", "2"), ("arms", "variants", "random"), ("arms", "variants", "random,original")],
)
def test_an_old_flag_goes_on_working_and_says_its_new_name(model: str, old: str, new: str, value: str):
    words = ["run", "none.pt", "--data", "digits", "--method", "lottery", f"--{old}", value, "--epochs", "0"]
    result = CliRunner().invoke(cli, words)
    assert f"Note: --{old} is called --{new} now." in result.stderr
    assert f"--{old}" not in result.output.replace(f"Note: --{old} is called", "")
    assert make(**{old: value}) == make(**{new: value})
    assert make(linearize="gentle") == make(linearize="gradual")
    assert cli.commands["run"].make_context("run", ["m.pt", "--linearize", "gentle"]).params["linearize"] == "gradual"
    assert make(method="depth", target="rectifiers=0.5") == make(method="depth", target="activations=0.5")


def test_old_values_and_units_say_their_new_name_on_the_command_line(model: str):
    words = ["run", model, "--data", "digits", "--method", "depth", "--dry-run"]
    result = CliRunner().invoke(cli, [*words, "--target", "rectifiers=0.5", "--linearize", "gentle"])
    assert "Note: the target rectifiers is called activations now." in result.stderr
    assert "Note: gentle is called gradual now." in result.stderr


@pytest.mark.parametrize("dry", [True, False])
def test_depth_that_may_cost_nothing_is_refused_and_not_planned_as_nothing(model: str, dry: bool):
    settings = {**QUICK, "method": "depth", "epochs": 0}
    for more, said in (
        ({}, "so nothing would be done. Give depth=POINTS"),
        ({"target": "activations=0.5"}, "stops by depth="),
    ):
        with pytest.raises(BadInput, match=said):
            compress.run(model, dry_run=True, **settings, **more) if dry else compress.plan(model, out=None, **settings, **more)


def test_a_dry_run_from_a_plan_counts_groups_once_and_claims_no_refit(model: str):
    compress.plan(model, out="first.json", method="half", **QUICK)
    words = ["run", model, "--data", "digits", "--method", "half", "--plan", "first.json", "--dry-run", "--calibration", "60"]
    result = CliRunner().invoke(cli, [*words, "--allow-doubtful"])
    assert "The plan: 2 groups of channels made smaller." in result.stdout
    assert "edits of first.json (method half) come first." in result.stdout and "refitted" not in result.stdout


def test_an_artifact_solves_its_channels_once_and_never_moves(monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    solve = artifacts.solve
    monkeypatch.setattr(artifacts, "solve", lambda *given: (calls.append(1), solve(*given))[1])
    inputs = (torch.zeros(1, 4),)
    one = Artifact(trace(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval(), inputs), inputs)
    assert one.channels is one.noting("a note").channels and len(calls) == 1
    half = apply(Plan((Keep("0", 3, (0, 2)),)), one)
    assert len(calls) == 1 and half.channels.removable[0].channels == 2 and len(calls) == 2
    assert one.on("cpu") is one.module
    away = one.on("meta")
    assert away is not one.module and {p.device.type for p in away.parameters()} == {"meta"}
    assert {p.device.type for p in one.module.parameters()} == {"cpu"} and placed(away, "meta") is away


def test_a_list_of_methods_needs_no_torch():
    code = (
        "import sys; from click.testing import CliRunner; from compress.cli.torchless import quick\n"
        "done = CliRunner().invoke(quick, ['methods', '--json']); assert done.exit_code == 0, done\n"
        "assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules); print(done.stdout)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert [row["method"] for row in json.loads(done.stdout)] == list(METHODS)
