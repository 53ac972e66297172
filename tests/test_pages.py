"""The pages in docs/: every command on them is one that this program takes, and, in the slow tier, does what it says."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import compress
from compress.cli.main import cli
from compress.edits import from_json
from compress.method_table import METHODS, Method
from compress.stages.finetune import Finetune

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
DEMO = "compress demo --out demo-out"
PAGED = ("state-entropy", "lottery", "sensitivity", "snip", "rl-entropy")
"""Methods that a page explains by their flag."""


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = (line.removeprefix("$ ") for block in blocks for line in block.splitlines())
    return [line for line in lines if line.startswith(("compress ", "python "))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_on_a_page_can_be_parsed(page: Path):
    for line in commands(page):
        program, *words = shlex.split(line)
        if program == "compress":
            name, *rest = words
            cli.commands[name].make_context(name, rest)  # raises where a flag or a choice is not known
        else:
            assert (ROOT / words[0]).exists(), line


@pytest.mark.parametrize("name", PAGED)
def test_a_method_has_a_page_that_runs_it(name: str):
    assert name in METHODS
    assert any(f"--method {name}" in line for page in PAGES for line in commands(page))


def test_the_readme_links_every_page():
    readme = (ROOT / "README.md").read_text()
    assert [page.name for page in PAGES if f"(docs/{page.name})" not in readme] == []


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("pages")
    carried_out(DEMO, folder)
    yield folder / "demo-out"


def carried_out(line: str, folder: Path) -> None:
    program, *words = shlex.split(line)
    command = (
        [sys.executable, "-m", "compress", *words] if program == "compress" else [sys.executable, ROOT / words[0], *words[1:]]
    )
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_on_a_page_works(page: Path, demonstration: Path, tmp_path: Path):
    if page.stem == "rl-entropy":
        pytest.importorskip("stable_baselines3")
    shutil.copytree(demonstration, tmp_path / "demo-out")
    for line in commands(page):
        if line != DEMO:
            carried_out(line, tmp_path)


def test_the_stage_in_contributing_is_a_method_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (tmp_path / "liveliest.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    stage = importlib.import_module("liveliest").Liveliest()
    monkeypatch.setitem(METHODS, "liveliest", Method((stage, Finetune()), "The channels whose outputs vary least go."))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(192, 10)).eval()
    with torch.no_grad():
        net[0].weight[3] = 0  # hardly varies
    torch.save(net, tmp_path / "model.pt")
    quick = {"data": "digits", "target": "macs=0.6", "epochs": 0.1, "rounds": 5, "calibration": 60, "align": 1}
    report = compress.run(tmp_path / "model.pt", method="liveliest", out=tmp_path / "out", **quick)
    assert report.result.macs <= 0.6 * report.dense.macs
    assert report.exactness is not None and report.exactness.holds and report.exports
    edit = from_json((tmp_path / "out/plan.json").read_text()).edits[0]
    assert edit.layer == "0" and 3 not in edit.keep
    assert len(code.splitlines()) < 50
