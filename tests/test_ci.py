"""The GitHub action and the GitLab template, replayed: their shell steps are read from the YAML and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from test_gate import RESULT, changed, quality, report

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "ci"
WORSE = changed(RESULT, quality=quality(0.90, (2.6, 3.4)), file_bytes=2_000_000)

STUB = """#!/bin/bash
# A Python whose 'compress run' only writes a report down; everything else is the real thing.
printf '%s\\n' "$@" >> "{log}"
if [ "$2 $3" = "compress run" ]; then mkdir -p out && cp "{report}" out/report.json; exit; fi
exec "{python}" "$@"
"""


@dataclass(frozen=True)
class Step:
    """What one replayed step left."""

    code: int
    output: str


def shell(script: str, environment: Mapping[str, str], folder: Path, *options: str) -> Step:
    """A script in bash, as a runner starts it."""
    inherited = {k: os.environ[k] for k in ("PATH", "HOME", "OMP_NUM_THREADS") if k in os.environ}
    environment = {**inherited, "PYTHONPATH": str(ROOT), **environment}
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", *options, "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return Step(done.returncode, done.stdout)


def holds(condition: str, inputs: Mapping[str, str]) -> bool:
    """`inputs.x == ''` and `inputs.x != ''`: all that the action asks."""
    name, operator = re.fullmatch(r"inputs\.(\w+) (==|!=) ''", condition).groups()  # type: ignore[union-attr]
    return (inputs[name] == "") == (operator == "==")


def action(folder: Path, **given: str) -> tuple[list[Step], dict[str, str], str]:
    """The composite action with these inputs: its steps, outputs and the job's summary."""
    document = yaml.safe_load((ROOT / "action.yml").read_text())
    assert set(given) <= set(document["inputs"])
    inputs = {name: str(given.get(name, said.get("default", ""))) for name, said in document["inputs"].items()}
    files = {name: str(folder / name.lower()) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    steps: list[Step] = []
    for step in document["runs"]["steps"]:
        if "if" in step and not holds(step["if"], inputs):
            continue
        assert step["shell"] == "bash" and "${{" not in step["run"], "inputs reach the shell by the environment only"
        environment = {key: filled(value, inputs) for key, value in step.get("env", {}).items()}
        steps.append(shell(step["run"], {**environment, **files}, folder))
        if steps[-1].code:
            break
    texts = [Path(path).read_text() if Path(path).exists() else "" for path in files.values()]
    return steps, dict(line.split("=", 1) for line in texts[0].splitlines()), texts[1]


def filled(text: str, inputs: Mapping[str, str]) -> str:
    known = {**{f"inputs.{k}": v for k, v in inputs.items()}, "github.action_path": str(ROOT)}
    return re.sub(r"\$\{\{ *([\w.]+) *\}\}", lambda m: known[m[1]], str(text))


def gitlab(folder: Path, job: str = "compress", **variables: str) -> Step:
    """The job of the example with its template, as a runner joins the two."""
    template = yaml.safe_load((EXAMPLE / "gitlab.yml").read_text())
    own = yaml.safe_load((EXAMPLE / ".gitlab-ci.yml").read_text())[job]
    merged: dict[str, Any] = {**template[own["extends"]], **own}
    values = {**template[own["extends"]]["variables"], **own.get("variables", {}), **variables}
    return shell("\n".join([*merged.get("before_script", ()), *merged["script"]]), {k: str(v) for k, v in values.items()}, folder)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with an accepted report, a worse one and a baseline."""
    for name, made in (("good", report()), ("bad", report(WORSE))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(made.to_json())
    (tmp_path / "baseline.json").write_text(report().to_json())
    return tmp_path


def stub(folder: Path, made: str) -> str:
    """See `STUB`."""
    path = folder / "python-stub"
    path.write_text(STUB.format(log=folder / "log", report=folder / made / "report.json", python=sys.executable))
    path.chmod(0o755)
    return str(path)


# GitHub


def test_the_action_is_green_for_a_report_that_keeps_the_rules(here: Path):
    rules = "--max-drop 0.5 --max-size 1.5MB"
    steps, outputs, summary = action(here, install="", python=sys.executable, report="good", rules=rules)
    assert [step.code for step in steps] == [0], steps
    assert outputs == {"report": "good", "passed": "true"} and "Compression gate: passed" in summary
    assert ElementTree.parse(here / "good" / "gate.xml").getroot().get("failures") == "0"


def test_the_action_is_red_for_a_regression_and_says_which(here: Path):
    rules = "--max-drop 0.5 --baseline baseline.json --tolerance size=5%"
    steps, outputs, summary = action(here, install="", python=sys.executable, report="bad/report.json", rules=rules)
    assert [step.code for step in steps] == [5] and "::error::" in steps[0].output
    assert outputs == {"report": "bad/report.json", "passed": "false"}
    assert "| max-drop |" in summary and "**fail**" in summary
    assert ElementTree.parse(here / "bad" / "gate.xml").getroot().get("failures") == "2"


def test_the_action_compresses_where_it_is_given_a_model(here: Path):
    python = stub(here, "good")
    inputs = {"model": "my model.pt", "flags": "--data 'my images' --epochs 1", "out": "out", "rules": "--max-drop 1"}
    steps, outputs, _ = action(here, install="", python=python, **inputs)
    assert [step.code for step in steps] == [0, 0], steps
    words = (here / "log").read_text().splitlines()
    assert words[:10] == ["-m", "compress", "run", "my model.pt", "--out", "out", "--force", "--data", "my images", "--epochs"]
    assert outputs["report"] == "out/report.json"


def test_empty_flags_are_no_word(here: Path):
    action(here, install="", python=stub(here, "good"), model="m.pt", out="out", rules="--max-drop 1")
    assert (here / "log").read_text().splitlines()[:8] == ["-m", "compress", "run", "m.pt", "--out", "out", "--force", "-m"]


@pytest.mark.parametrize(
    ("inputs", "part"),
    [({"rules": "--max-drop 1"}, "Neither model nor report"), ({"report": "gone", "rules": "--max-drop 1"}, "cannot be read")],
)
def test_the_action_says_what_is_missing(here: Path, inputs: dict[str, str], part: str):
    steps, _, summary = action(here, install="", python=sys.executable, **inputs)
    assert steps[-1].code == 2 and part in steps[-1].output and not summary


def test_what_stands_in_an_input_is_no_command(here: Path):
    action(here, install="", python=sys.executable, report="good", rules="--max-drop 1; touch pwned $(touch pwned) `touch pwned`")
    action(here, install="", python=sys.executable, report="$(touch pwned)", rules="--max-drop 1")
    assert not (here / "pwned").exists()


# GitLab


def test_the_template_is_green_and_red(here: Path):
    shutil.copy(EXAMPLE / "train.py", here)
    (here / "train.py").write_text("")  # trained already
    settings = {"INSTALL": "", "RULES": "--max-drop 0.5 --max-size 1.5MB", "OUT": "out"}
    done = gitlab(here, PYTHON=stub(here, "good"), **settings)
    assert done.code == 0 and "Passed" in done.output, done
    assert "--target" in (here / "log").read_text().splitlines()
    done = gitlab(here, PYTHON=stub(here, "bad"), **settings)
    assert done.code == 5 and "Failed" in done.output and (here / "out" / "gate.xml").exists(), done
    done = gitlab(here, PYTHON=sys.executable, REPORT="good", **settings)
    assert done.code == 0 and "Passed" in done.output, done


# The example


def workflow_inputs() -> dict[str, str]:
    """What the workflow of the example gives to the action."""
    workflow = yaml.safe_load((EXAMPLE / ".github" / "workflows" / "compress.yml").read_text())
    return workflow["jobs"]["gate"]["steps"][-1]["with"]


def test_both_systems_judge_the_example_by_the_same_rules():
    job = yaml.safe_load((EXAMPLE / ".gitlab-ci.yml").read_text())["compress"]["variables"]
    inputs = workflow_inputs()
    assert (inputs["flags"], inputs["rules"]) == (job["FLAGS"], job["RULES"])
    assert set(inputs) <= set(yaml.safe_load((ROOT / "action.yml").read_text())["inputs"])


def test_the_baseline_of_the_example_keeps_its_own_rules(here: Path):
    rules = yaml.safe_load((EXAMPLE / ".gitlab-ci.yml").read_text())["compress"]["variables"]["RULES"]
    baseline = json.loads((EXAMPLE / "baseline.json").read_text())
    made = report().model_dump(mode="json", by_alias=True)
    made |= {"stages": [baseline["dense"], baseline["result"]], "environment": baseline["environment"]}
    (here / "same").mkdir()
    (here / "same" / "report.json").write_text(json.dumps(made))
    shutil.copy(EXAMPLE / "baseline.json", here)
    steps, _, summary = action(here, install="", python=sys.executable, report="same", rules=rules)
    assert steps[-1].code == 0, summary


@pytest.mark.slow
def test_a_regression_planted_in_the_model_turns_the_step_red(tmp_path: Path):
    pytest.importorskip("sklearn")
    for name in ("train.py", "baseline.json"):
        shutil.copy(EXAMPLE / name, tmp_path)
    # What is judged here is the regression; on a busy machine the times of so small a net cannot tell anything.
    inputs = workflow_inputs()
    inputs["rules"] += " --on-noise pass"
    for flags, code in (((), 0), (("--planted",), 5)):
        subprocess.run(
            [sys.executable, "train.py", *flags], cwd=tmp_path, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        steps, _, summary = action(tmp_path, **{**inputs, "python": sys.executable})
        assert [step.code for step in steps] == [0, code], summary
    assert "| tolerance quality |" in summary
    assert gitlab(tmp_path, INSTALL="", PYTHON=sys.executable, RULES=inputs["rules"]).code == 0


@pytest.mark.slow
def test_the_install_step_installs_this_very_code(tmp_path: Path):
    """Without its dependencies: those come from the environment that runs the tests."""
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", tmp_path / "venv"], check=True)
    (tmp_path / "pip.conf").write_text("[install]\nno-deps = true\nno-build-isolation = true\n")
    step = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"][0]
    inputs = {"python": str(tmp_path / "venv" / "bin" / "python"), "install": "action"}
    environment = {key: filled(value, inputs) for key, value in step["env"].items()}
    elsewhere = {"PIP_CONFIG_FILE": str(tmp_path / "pip.conf"), "PYTHONPATH": ""}
    done = shell(step["run"], environment | elsewhere, tmp_path)
    assert done.code == 0, done.output
    found = shell("venv/bin/python -c 'import compress.gate; print(compress.__file__)'", elsewhere, tmp_path)
    assert found.output.startswith(str(tmp_path)), found.output


def pins(path: Path) -> dict[str, str]:
    """Versions by name, as they stand in a file of requirements; names as registries write them."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", path.read_text(), re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_the_lock_has_the_versions_of_the_constraints_each_with_its_hashes_and_names_no_place():
    text = (ROOT / "requirements.lock").read_text()
    locked, constrained = pins(ROOT / "requirements.lock"), pins(ROOT / "constraints.txt")
    assert locked and {name: v for name, v in locked.items() if v != constrained.get(name, v)} == {}
    assert all("--hash=sha256:" in entry for entry in re.split(r"^(?=[A-Za-z])", text, flags=re.MULTILINE) if "==" in entry)
    assert not re.search(r"https?:|file:|^-|/home|/tmp", text, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    direct = {re.match(r"[\w-]+", one)[0].lower() for one in project["dependencies"]}  # type: ignore[index]
    assert direct <= set(locked)
