"""The command line: flags are the recipe's fields, errors are one sentence with an exit code, nothing is left half-written."""

from __future__ import annotations

import inspect
import json
import os
import re
import resource
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import compress
from compress import api, errors
from compress.artifact import Artifact
from compress.cli import guard, options
from compress.cli.main import cli
from compress.edits import Keep
from compress.errors import BadInput, GateFailed, Infeasible, Interrupted, StageFailed, UnsupportedModel
from compress.measure.cost import cost
from compress.measure.latency import Timing
from compress.pipeline.latency_cache import LatencyCache
from compress.recipe import Recipe, make

ROOT = Path(__file__).resolve().parent.parent
SURFACE = {"as_json", "debug", "quiet", "log_format", "every"}
"""Flags that only a command line has."""


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def refused(result: Result, exit_code: int) -> str:
    """The one sentence of a refusal."""
    lines = [line for line in result.stderr.splitlines() if not line.endswith("...") and not line.startswith("Warning: ")]
    assert result.exit_code == exit_code, result.output
    assert len(lines) == 1 and lines[0].startswith("Error: "), result.stderr
    assert "Traceback" not in result.output and not result.stdout
    return lines[0]


def by_macs(_: LatencyCache, one: Artifact, other: Artifact) -> Timing:
    """As fast as it has few multiply-accumulates: what a test can rely on."""
    ratio = cost(other.module, other.inputs).macs / cost(one.module, one.inputs).macs
    return Timing(1.0, ratio, (ratio * 0.99, ratio * 1.01), 5)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder of its own, with a small model in it."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(small_net(), "model.pt")
    return tmp_path


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 10),
    ).eval()


# The surface


def test_every_setting_is_a_flag_of_run_and_nothing_else_is():
    names = {p.name for p in cli.commands["run"].params if not getattr(p, "hidden", False)}
    assert names - {"out", "recipe", "methods", "dry_run", "resume", "force", "log", "nproc", "profile"} - SURFACE == set(
        Recipe.model_fields
    )


@pytest.mark.parametrize("name", [n for n in Recipe.model_fields if n != "model"])
def test_a_flag_has_the_name_and_the_words_of_its_setting(name: str):
    option = next(p for p in cli.commands["run"].params if p.name == name)
    assert isinstance(option, click.Option)
    assert "--" + name.replace("_", "-") in option.opts
    assert (Recipe.model_fields[name].description or "?") in (option.help or "")


OF_SHELLS = {"completion"}
TWINS = {"report": "report_page"}
"""`compress.report` is the package of the records, which programs import."""


@pytest.mark.parametrize("command", sorted(set(cli.commands) - OF_SHELLS))
def test_a_command_has_a_python_twin_with_the_same_arguments(command: str):
    signature = inspect.signature(getattr(api, TWINS.get(command, command)))
    variadic = {p.name for p in signature.parameters.values() if p.kind is p.VAR_POSITIONAL}
    takes_settings = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    for flag in {p.name or "" for p in cli.commands[command].params if not getattr(p, "hidden", False)} - SURFACE:
        known = set(signature.parameters) | variadic | (set(Recipe.model_fields) if takes_settings else set())
        assert flag in known, f"compress.{command} has no argument {flag}"


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_help_ends_with_an_example_that_can_be_parsed(command: str):
    text = invoke(command, "--help").stdout.rstrip()
    heading, _, example = text.rpartition("Example:\n")
    assert heading and "\n\n" not in example
    assert max(map(len, text.splitlines())) <= 80
    words = shlex.split(example.replace("\\\n", " "))
    assert words[:2] == ["compress", command]
    parsed = cli.commands[command].make_context(command, words[2:])
    assert parsed.params is not None


def test_help_answers_in_half_a_second_and_without_torch():
    code = "import sys, compress, compress.cli.main; assert 'torch' not in sys.modules and 'onnx' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    spent = []
    for _ in range(3):  # processor seconds, which other processes hardly change
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "compress", "--help"], check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(spent) < 0.5


@pytest.mark.parametrize(
    "wrong",
    [
        "run model.pt --epochs -1",
        "run model.pt --iterations 2 --epochs 0",
        "plan model.pt --target macs=7",
        "run model.pt --method entropc",
    ],
)
def test_settings_that_no_recipe_accepts_are_refused_without_torch(wrong: str, tmp_path: Path):
    (tmp_path / "model.pt").write_bytes(b"opened by nobody")
    code = (
        "import sys\nfrom compress.cli.main import cli\n"
        f"try: cli({wrong.split()!r})\nfinally: assert 'torch' not in sys.modules, 'torch was loaded'"
    )
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 2 and found.stderr.startswith("Error: ") and found.stderr.count("\n") == 1, found.stderr


def test_values_of_flags_arrive_in_the_types_of_the_recipe():
    found = options.given({"arch_kwargs": ("num_classes=10", "name=x", "deep=True"), "epochs": None, "export": (), "seed": 0})
    assert found == {"arch_kwargs": {"num_classes": 10, "name": "x", "deep": True}, "seed": 0}
    assert make(**found).arch_kwargs["num_classes"] == 10


def test_public_names_are_functions_whatever_was_imported_before():
    code = (
        "import compress.commands.plan, compress.checkpoint.load, compress.pipeline.run, compress\n"
        "assert sorted(compress.__all__) == sorted(set(dir(compress)) - {'__version__'})\n"
        "assert all(type(getattr(compress, name)).__name__ == 'function' for name in compress.__all__)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_public_name_is_refused_with_those_that_exist():
    with pytest.raises(AttributeError, match=r"no attribute 'prune'.*explain"):
        _ = compress.prune


# Errors


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (BadInput("x"), 2),
        (Infeasible("x"), 3),
        (UnsupportedModel("x"), 4),
        (GateFailed("x"), 5),
        (StageFailed("remove", ["dense"], ValueError("x")), 1),
        (RuntimeError("x\ny"), 1),
        (OSError(28, "No space left on device"), 2),
        (Interrupted(("dense",)), 130),
    ],
)
def test_an_error_is_one_sentence_with_its_exit_code(monkeypatch: pytest.MonkeyPatch, error: BaseException, exit_code: int):
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr("compress.api.run", fail)
    sentence = refused(invoke("run", __file__), exit_code)
    if isinstance(error, Interrupted):
        assert "--resume" in sentence


def test_errors_of_exporters_have_exit_codes(monkeypatch: pytest.MonkeyPatch):
    from exporters.errors import ExportError, MissingBackend, ParityError

    for error, exit_code in ((ParityError(1.0, 0.1, "output"), 5), (MissingBackend("x", "y", "z"), 4), (ExportError("x"), 4)):
        assert guard.sentence(error) == (str(error), exit_code)


def test_debug_shows_where_an_error_came_from(here: Path):
    result = invoke("explain", "nothing.pt", "--debug")
    assert result.exit_code == 2 and "Traceback" in result.stderr and "Error: There is no" in result.stderr


# Commands that need no data


def test_explain_lists_groups_and_says_why_some_are_frozen(here: Path):
    rows = json.loads(invoke("explain", "model.pt", "--input-shape", "1x8x8", "--json").stdout)
    assert [(r["name"], r["channels"]) for r in rows if r["frozen"] is None] == [("0", 8), ("3", 12)]
    assert "output" in next(r["frozen"] for r in rows if r["name"] == "7")
    assert "frozen" in invoke("explain", "model.pt", "--input-shape", "1x8x8").stdout


def test_explain_shows_what_hangs_on_one_layer(here: Path):
    rows = json.loads(invoke("explain", "model.pt", "0", "--input-shape", "1x8x8", "--json").stdout)
    tensors = {(r["tensor"], r["axis"], r["role"]) for r in rows}
    assert {("0.weight", 0, "out"), ("1.weight", 0, "through"), ("3.weight", 1, "in")} <= tensors


def test_explain_names_close_layers_for_an_unknown_one(here: Path):
    sentence = refused(invoke("explain", "model.pt", "33", "--input-shape", "1x8x8"), 2)
    assert "'33'" in sentence and "close are 3" in sentence


def test_apply_carries_out_a_plan_and_the_result_loads(here: Path):
    keep = {"edit": "keep", "layer": "0", "channels": 8, "keep": [0, 3, 5]}
    Path("plan.json").write_text(json.dumps({"schema": 1, "method": "m", "align": 1, "edits": [keep]}))
    result = invoke("apply", "plan.json", "model.pt", "--input-shape", "1x8x8")
    assert result.exit_code == 0, result.output
    model = compress.load("model.compressed")
    assert model.get_submodule("0").weight.shape[0] == 3
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_apply_refuses_to_write_over_what_is_there(here: Path):
    Path("plan.json").write_text('{"schema": 1, "edits": []}')
    Path("model.compressed").mkdir()
    assert "--force" in refused(invoke("apply", "plan.json", "model.pt", "--input-shape", "1x8x8"), 2)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 9, "edits": []}', '{"schema": 1, "edits": [{"edit": "merge"}]}'])
def test_a_plan_that_cannot_be_read_is_refused(here: Path, text: str):
    Path("plan.json").write_text(text)
    assert "plan" in refused(invoke("apply", "plan.json", "model.pt", "--input-shape", "1x8x8"), 2)
    assert not Path("model.compressed").exists()


def test_a_plan_for_another_model_is_refused(here: Path):
    edits = [{"edit": "keep", "layer": "0", "channels": 64, "keep": [0]}]
    Path("plan.json").write_text(json.dumps({"schema": 1, "edits": edits}))
    assert "64" in refused(invoke("apply", "plan.json", "model.pt", "--input-shape", "1x8x8"), 2)


def test_export_writes_a_file_that_equals_the_model(here: Path):
    result = invoke("export", "model.pt", "--input-shape", "1x8x8", "--out", "small.onnx", "--json")
    found = json.loads(result.stdout)
    assert Path("small.onnx").stat().st_size == found["bytes"]
    assert found["parity"]["worst_abs"] <= found["parity"]["tolerance"]


def test_export_refuses_an_unknown_format_before_it_opens_anything(here: Path):
    assert "'tflight'" in refused(invoke("export", "model.pt", "--format", "tflight"), 2)


def test_bench_compares_files_with_the_first_one(here: Path):
    assert invoke("export", "model.pt", "--input-shape", "1x8x8").exit_code == 0
    result = invoke("bench", "model.onnx", "model.pt", "--input-shape", "1x8x8", "--rounds", 5, "--threads", 1, "--json")
    timings = json.loads(result.stdout)
    assert list(timings) == ["model.onnx", "model.pt"]
    assert timings["model.onnx"]["ratio"] == 1 and timings["model.pt"]["p50_ms"] > 0


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "No model was given"),
        (("nothing.onnx",), "nothing.onnx"),
        (("model.onnx",), "not a readable ONNX file"),
        (("model.onnx", "--runtime", "torch"), "which torch does not run"),
    ],
)
def test_bench_refuses_what_it_cannot_time(here: Path, arguments: tuple[str, ...], part: str):
    Path("model.onnx").write_text("<html>")
    assert part in refused(invoke("bench", *arguments), 2)


def test_doctor_says_what_to_install_for_what_is_missing():
    rows = json.loads(invoke("doctor", "--json").stdout)
    assert {"Python", "torch", "device cpu", "device cuda", "export onnx"} <= {r["what"] for r in rows}
    assert all(r["remedy"] for r in rows if not r["works"])


def test_methods_lists_stages_of_every_method():
    rows = json.loads(invoke("methods", "--json").stdout)
    assert "entropic" in {r["method"] for r in rows} and all(r["stages"] for r in rows)


# Commands that look at data


@pytest.fixture
def data(here: Path) -> tuple[str, ...]:
    """Flags for a small data set beside the model."""
    random = np.random.default_rng(0)
    np.savez("data.npz", x=random.integers(0, 255, (80, 8, 8), dtype=np.uint8), y=np.arange(80) % 10)
    return ("--data", "data.npz", "--calibration", "40")


def test_analyze_tells_entropy_cost_and_savings(data: tuple[str, ...]):
    rows = {r["layer"]: r for r in json.loads(invoke("analyze", "model.pt", *data, "--json").stdout)}
    assert 0 < rows["3"]["entropy"] <= 1 and rows["3"]["params"] == 12 * 8 * 9 + 12
    assert 0 < rows["0"]["macs_saved"] < 1 and rows["7"]["frozen"]
    assert rows["0"]["spatial"] is None


def test_analyze_takes_spatial_entropy_where_it_is_asked_for(data: tuple[str, ...]):
    rows = {
        definition: {
            r["layer"]: r
            for r in json.loads(invoke("analyze", "model.pt", *data, "--no-time", "--spatial", definition, "--json").stdout)
        }
        for definition in ("pairwise", "aura")
    }
    assert 0 < rows["pairwise"]["0"]["spatial"] <= 1 < rows["aura"]["0"]["spatial"] <= 8
    assert 0 <= rows["aura"]["0"]["spatial_constant"] < 1
    assert rows["aura"]["7"]["spatial"] is None  # a linear layer has no maps


def test_a_plan_is_made_written_and_carried_out_with_the_same_result_as_a_run(data: tuple[str, ...]):
    flags = ("--target", "params=0.5", "--depth", 0)
    decision = json.loads(invoke("plan", "model.pt", *data, *flags, "--json").stdout)
    assert decision["planned"]["params"] <= 0.52 * decision["dense"]["params"]  # 2 %: what a target is hit within
    assert invoke("apply", "plan.json", "model.pt", "--input-shape", "1x8x8").exit_code == 0
    counted = sum(p.numel() for p in compress.load("model.compressed").parameters())
    assert counted == decision["planned"]["params"]
    result = invoke("run", "model.pt", *data, *flags, "--align", 1, "--epochs", 0, "--rounds", 5)
    assert result.stdout.splitlines()[0].startswith("stage") and "out/report.html (for a browser)" in result.stdout
    assert json.loads(Path("out/report.json").read_text())["stages"][-1]["params"] == counted
    assert json.loads(Path("out/plan.json").read_text())["edits"] == json.loads(Path("plan.json").read_text())["edits"]


def test_a_plan_with_depth_is_replayed_on_another_checkpoint(data: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(LatencyCache, "race", by_macs)
    torch.manual_seed(1)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)).eval()
    torch.save(net, "deep.pt")
    torch.manual_seed(2)
    again = nn.Sequential(*[type(m)(m.in_features, m.out_features) if isinstance(m, nn.Linear) else m for m in net])
    torch.save(again, "other.pt")
    flags = ("--target", "params=0.9", "--depth", 100, "--rounds", 5, "--apply-to", "other.pt")
    made = invoke("plan", "deep.pt", *data, *flags)
    assert made.exit_code == 0, made.output
    kinds = [edit["edit"] for edit in json.loads(Path("plan.json").read_text())["edits"]]
    assert {"linearize", "merge"} <= set(kinds)
    assert "linearize" in made.stdout and "merged into one layer" in made.stdout
    smaller = compress.load("model.compressed")
    assert sum(isinstance(m, nn.Linear) for m in smaller.modules()) < 3
    line = shlex.split(made.stdout.splitlines()[-1])
    assert line == ["compress", "apply", "plan.json", "deep.pt", *data[:2], "--out", "model-2.compressed"]
    assert invoke(*line[1:]).exit_code == 0
    assert "The plan" in refused(invoke("apply", "plan.json", "model.pt", "--input-shape", "1x8x8", "--force"), 2)
    assert "decides while it trains" in refused(invoke("plan", "deep.pt", *data, "--method", "easier", "--force"), 2)


def test_explain_lists_rectifiers_and_what_could_merge_across_them(here: Path):
    rows = json.loads(invoke("explain", "model.pt", "--depth", "--input-shape", "1x8x8", "--json").stdout)
    assert [row["activation"] for row in rows] == ["2", "4"]
    assert rows[0]["merges"] == ["0", "3"] and rows[0]["padding_moves"] is True
    for shown, told in ((("--depth",), True), ((), False)):
        assert ("pointwise: those" in invoke("explain", "model.pt", *shown, "--input-shape", "1x8x8").stdout) == told
    assert "--depth speaks of the whole model" in refused(
        invoke("explain", "model.pt", "0", "--depth", "--input-shape", "1x8x8"), 2
    )


def test_a_plan_rounds_channel_counts_as_a_run_does(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 16, 4))
    data = (torch.rand(80, 1, 8, 8), torch.arange(80) % 4)
    how: dict[str, Any] = {"data": data, "target": "macs=0.6", "calibration": 40, "depth": 0, "rounds": 5, "allow_doubtful": True}
    monkeypatch.setattr("compress.pipeline.rounding._at_equal_time", lambda *_: None)  # by speed alone here
    for faster in (True, False):
        monkeypatch.setattr("compress.pipeline.rounding.pays", lambda *_, found=faster: found)
        plans = compress.plan(net, **how), compress.run(net, dry_run=True, **how)
        counts = [[len(edit.keep) for edit in one.plan.edits if isinstance(edit, Keep)] for one in plans]
        assert counts[0] == counts[1] and all(count % 8 == 0 for count in counts[0]) == faster


def test_plan_does_not_write_over_what_is_there(data: tuple[str, ...]):
    Path("plan.json").write_text("mine")
    assert "--force" in refused(invoke("plan", "model.pt", *data), 2)
    assert Path("plan.json").read_text() == "mine"


def test_a_dry_run_shows_plan_and_cost_and_writes_nothing(data: tuple[str, ...]):
    before = sorted(os.listdir())
    result = invoke("run", "model.pt", *data, "--target", "macs=0.5", "--dry-run")
    assert result.exit_code == 0 and "planned" in result.stdout and "Nothing was written" in result.stdout
    assert sorted(os.listdir()) == before


def test_flags_win_over_a_recipe_file(data: tuple[str, ...]):
    recipe = make(model="model.pt", data="data.npz", calibration=40, target="params=0.5")
    Path("recipe.toml").write_text(recipe.to_toml())
    shares = []
    for flags in ((), ("--target", "params=0.8")):
        decision = json.loads(invoke("run", "--recipe", "recipe.toml", *flags, "--dry-run", "--json").stdout)
        shares.append(decision["planned"]["params"] / decision["dense"]["params"])
    assert shares[0] < 0.51 < 0.75 < shares[1]  # a target is hit within 2 %, or by the next smaller choice of a tiny net


def test_the_default_target_stands_in_the_recipe_and_in_the_help():
    assert make().target == "macs=0.5" and 'target = "macs=0.5"' in make().to_toml()
    assert make(tolerance=0.1).target is None
    assert "macs=0.5 where neither" in (Recipe.model_fields["target"].description or "")


def test_a_tolerance_takes_the_place_of_a_files_target_and_the_other_way_round(here: Path):
    Path("recipe.toml").write_text(make(model="model.pt").to_toml())
    found, _ = api.resolved_recipe(None, "recipe.toml", {"tolerance": 0.1})
    assert (found.target, found.tolerance) == (None, 0.1)
    again, _ = api.resolved_recipe(None, found, {"target": "params=0.5"})
    assert (again.target, again.tolerance) == ("params=0.5", None)


def test_input_shapes_may_be_numbers():
    for given in ((1, 28, 28), [1, 28, 28], ((1, 28, 28),), "1x28x28", ("1x28x28",)):
        assert make(input_shape=given).input_shape == ("1x28x28",)
    assert make(input_shape=((1, 8, 8), (3, 8, 8))).input_shape == ("1x8x8", "3x8x8")


@pytest.mark.parametrize("given", ["onnx,onnx-int8", ("onnx", "onnx-int8"), ["onnx,onnx-int8"]])
def test_formats_may_be_separated_by_commas(given: object):
    assert make(export=given).export == ("onnx", "onnx-int8")


@pytest.mark.parametrize("given", ["random,original", ("random", "original"), ["random,original"]])
def test_variants_may_be_separated_by_commas(given: object):
    assert make(arms=given).variants == make(variants=given).variants == ("random", "original")


def test_bench_takes_the_input_shape_from_the_file_that_knows_it(here: Path):
    assert invoke("export", "model.pt", "--input-shape", "1x8x8").exit_code == 0
    timings = json.loads(invoke("bench", "model.pt", "model.onnx", "--rounds", 5, "--threads", 1, "--json").stdout)
    assert list(timings) == ["model.pt", "model.onnx"]
    assert "--input-shape" in refused(invoke("bench", "model.pt"), 2)


@pytest.mark.parametrize("name", compress.__all__)
def test_a_verb_shows_its_arguments_and_its_words(name: str):
    verb, twin = getattr(compress, name), getattr(api, name)
    assert inspect.signature(verb) == inspect.signature(twin)
    assert verb.__doc__ == twin.__doc__


def test_every_line_that_installs_something_names_the_distribution_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == errors.DISTRIBUTION
    named: set[str] = set()
    for path in (*(ROOT / "compress").rglob("*.py"), *(ROOT / "exporters").rglob("*.py")):
        text = path.read_text()
        assert not re.findall(r"pip install '?compress\b", text), f"{path}: that is somebody else's distribution"
        named |= set(re.findall(r"\bextra\([\"'](\w+)[\"']\)", text))
    assert named and named <= set(project["optional-dependencies"])
    own = [r for rows in project["optional-dependencies"].values() for r in rows if r.startswith(("compress[", "entropress["))]
    assert own and all(r.startswith(f"{errors.DISTRIBUTION}[") for r in own)
