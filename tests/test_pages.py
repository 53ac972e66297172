"""What the README and the pages of docs/ let a reader paste: every command can be parsed, and, in the slow tier, all of it is
carried out in the order of the page, in a folder with a trained model and its images; the quick parts always."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import PAGES, README, ROOT, Block, blocks, commands, file_of, lines, name
from PIL import Image
from torch import nn
from torchvision.models import mobilenet_v3_small

import compress
import exporters
from compress.cli.main import cli
from compress.data import open_data
from compress.edits import from_json
from compress.method_table import METHODS, Method, step
from compress.recipe import make
from compress.training import train
from exporters.standalone import engine

ENGINE = "python engine.py "
DEMO = "compress demo --out demo-out"
ELSEWHERE = ("git ", "pip ", "make ")
"""Commands that change the reader's machine: `make test` and the installation of a clone are tested by whoever runs this."""
SHELL = ("mkdir", "ssh-keygen", "echo")
OF_A_PACKAGE = ("model/verify.py", "model/bench.py")
NEEDS = {"methods/rl-entropy": "stable_baselines3", "how-to/lightning": "lightning", "how-to/detectors": "pycocotools"}
"""Page -> the package without which it cannot be followed."""
RUNNING = [page for page in PAGES if any(block.language in ("console", "python") for block in blocks(page))]
QUICK = [page for page in PAGES if name(page) in ("how-to/model", "reference/python")]
"""Pages whose blocks are carried out in the default tier, but for whole runs."""


@pytest.mark.parametrize("page", RUNNING, ids=name)
def test_every_command_on_a_page_can_be_parsed(page: Path):
    for line in commands(page):
        program, *words = shlex.split(line)
        if program == "compress":
            command, *rest = words
            cli.commands[command].make_context(command, rest)  # raises where a flag or a choice is not known
        elif line.startswith(ENGINE):
            engine.parsed(words[1:])
        elif program == "python":
            assert (ROOT / words[0]).exists() or words[0] in OF_A_PACKAGE, line
        else:
            assert line.startswith(ELSEWHERE) or program in SHELL, line


@pytest.mark.parametrize("page", RUNNING, ids=name)
def test_blocks_of_a_page_are_of_a_kind_that_is_checked(page: Path):
    for block in blocks(page):
        if block.language == "console":
            assert all(line.startswith("$ ") for line in block.text.splitlines()), block.text
        elif block.language == "python":
            compile(block.text, block.title or name(page), "exec")
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "json":
            json.loads(block.text)
        else:
            assert block.language == "text", block.language


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_method_has_a_page_that_runs_it(method: str):
    told = [re.search(r"--methods? (\S+)", line) for page in PAGES for line in commands(page)]
    assert method in {one for match in told if match for one in match[1].split(",")}


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted: images, a whole model, a state_dict with its class, and programs on the PATH."""
    folder = tmp_path_factory.mktemp("workshop")
    images(folder)
    (folder / "net.py").write_text(file_of("net.py"))
    shutil.copy(ROOT / "exporters/standalone/engine.py", folder)
    np.save(folder / "x.npy", np.zeros(1, np.float32))
    np.save(folder / "y.npy", np.zeros(1, np.float32))
    space: dict[str, type[nn.Module]] = {"__name__": "net"}  # type: ignore[dict-item]
    exec(file_of("net.py"), space)
    torch.manual_seed(0)
    torch.save(trained(space["Net"](), folder).state_dict(), folder / "weights.pt")
    torch.save(trained(whole(), folder), folder / "model.pt")
    torch.save(mobilenet_v3_small(num_classes=10).eval(), folder / "mobilenet.pt")
    for program, runs in (("compress", "-m compress"), ("python", "")):
        path = folder / "bin" / program
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {runs} "$@"\n')
        path.chmod(0o755)
    return folder


def images(folder: Path) -> None:
    """Digits of 16x16 in colors, as pictures: images/train/0/*.png ..., and some without labels."""
    data = open_data("digits")
    number = 0
    for part, split, count in (("train", data.train, 500), ("test", data.test, 200)):
        batch = next(split.batches(count))
        for x, y in zip(batch.inputs[0], batch.target, strict=True):
            gray = ((x - x.min()) / (x.max() - x.min()) * 255).to(torch.uint8).numpy()[0]
            picture = Image.fromarray(np.repeat(np.kron(gray, np.ones((2, 2), np.uint8))[..., None], 3, 2))
            for place in (folder / "images" / part / str(int(y)), folder / "unlabeled")[: 2 if number < 300 else 1]:
                place.mkdir(parents=True, exist_ok=True)
                picture.save(place / f"{number:04d}.png")
            number += 1


def whole() -> nn.Sequential:
    """Takes images of any size."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def trained(net: nn.Module, folder: Path) -> nn.Module:
    return train(net, open_data(folder / "images"), make(epochs=8, lr=1e-2, batch_size=50)).module.eval()


@pytest.fixture(scope="session")
def demonstration(workshop: Path) -> Iterator[Path]:
    carried_out(DEMO, workshop, workshop)
    yield workshop / "demo-out"


@pytest.mark.parametrize("page", QUICK, ids=name)
def test_the_quick_parts_of_a_page_work(page: Path, workshop: Path, tmp_path: Path):
    follow(page, workshop, tmp_path, without=("compress run ",))


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNING, ids=name)
def test_a_page_can_be_followed_from_top_to_bottom(page: Path, workshop: Path, tmp_path: Path, request: pytest.FixtureRequest):
    if (package := NEEDS.get(name(page))) is not None:
        pytest.importorskip(package)
    if "demo-out" in page.read_text():
        shutil.copytree(request.getfixturevalue("demonstration"), tmp_path / "demo-out")
    follow(page, workshop, tmp_path)


def follow(page: Path, workshop: Path, folder: Path, without: tuple[str, ...] = ()) -> None:
    """Every block of a page, in order, in a folder that has what the workshop has."""
    shutil.copytree(workshop, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("demo-out"))
    for block in blocks(page):
        if block.title:
            (folder / block.title).write_text(block.text)
        elif block.language == "python" and not defines_a_stage(block):
            (folder / "block.py").write_text(block.text)
            carried_out("python block.py", folder, workshop)
        elif block.language == "console":
            for line in lines(block):
                if line != DEMO and not line.startswith((*ELSEWHERE, *without)) and can_run_here(line):
                    carried_out(line, folder, workshop)


def defines_a_stage(block: Block) -> bool:
    """It has a test of its own below."""
    return "class Liveliest" in block.text


def can_run_here(line: str) -> bool:
    """No other machine, and no runtime that is not installed."""
    there = exporters.available()
    missing = [ending for format, ending in exporters.ENDING.items() if not there[format].works]
    missing += [format for format in exporters.EXPORTERS if not there[format].works]
    return "ssh://" not in line and not any(word in line for word in missing)


def allowed(line: str) -> tuple[int, ...]:
    """Exit codes that a line may end with: a limit on quality may not hold for this small model, and here may be no GPU."""
    return (0, 4) if line.startswith(ENGINE) else (0, 5) if "--max-drop" in line else (0,)


def carried_out(line: str, folder: Path, workshop: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{workshop / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "COMPRESS_CACHE": str(workshop / "cache"),
    }
    line = line.replace("python examples/", f"python {ROOT}/examples/")
    done = subprocess.run(["bash", "-c", line], cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode in allowed(line), f"{line}\n{done.stdout}\n{done.stderr}"


def test_the_readme_links_every_page_that_a_newcomer_needs():
    text = README.read_text()
    needed = [page for page in PAGES if page.parent.name in ("how-to", "reference") and page.name != "data.md"]
    assert [page.name for page in needed if f"(docs/{page.parent.name}/{page.name})" not in text] == []


@pytest.fixture
def liveliest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The stage of the guide as a method, and a model with one channel that hardly varies."""
    (code,) = (block.text for block in blocks(ROOT / "docs" / "extending.md") if defines_a_stage(block))
    assert len(code.splitlines()) < 50
    (tmp_path / "liveliest.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "liveliest", raising=False)
    stage = importlib.import_module("liveliest").Liveliest()
    monkeypatch.setitem(METHODS, "liveliest", Method((stage, step("finetune")), "The channels whose outputs vary least go."))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(), nn.Flatten(), nn.Linear(192, 10)).eval()
    with torch.no_grad():
        net[0].weight[3] = 0
    torch.save(net, tmp_path / "model.pt")
    return str(tmp_path / "model.pt")


QUICK_RUN = {
    "data": "digits",
    "allow_doubtful": True,
    "method": "liveliest",
    "target": "macs=0.6",
    "epochs": 0.1,
    "rounds": 5,
    "calibration": 60,
    "align": 1,
}


@pytest.mark.parametrize("iterations", [1, 2])
def test_the_stage_on_the_page_is_a_method_that_works(liveliest: str, tmp_path: Path, iterations: int):
    report = compress.run(liveliest, out=tmp_path / "out", iterations=iterations, **QUICK_RUN)
    assert report.result.macs <= 0.6 * report.dense.macs
    assert report.exactness is not None and report.exactness.holds and report.exports
    assert sum(row.stage.startswith("liveliest") for row in report.stages) == iterations
    edit = from_json((tmp_path / "out/plan.json").read_text()).edits[0]
    assert edit.layer == "0" and 3 not in edit.keep


@pytest.mark.parametrize("dry", [True, False])
def test_the_stage_on_the_page_can_be_planned(liveliest: str, dry: bool):
    call = {"dry_run": True} if dry else {"out": None}
    decision = (compress.run if dry else compress.plan)(liveliest, **call, **QUICK_RUN)
    assert decision.planned.macs <= 0.6 * decision.dense.macs
    assert [edit.layer for edit in decision.plan.edits] == ["0", "2"] and 3 not in decision.plan.edits[0].keep


def test_the_line_on_the_page_is_one_of_the_table(liveliest: str):
    (line,) = (block.text for block in blocks(ROOT / "docs" / "extending.md") if block.text.startswith('"liveliest"'))
    made = eval(f"{{{line}}}", {"Method": Method, "step": step})["liveliest"]
    assert [one.name for one in made.steps] == [one.name for one in METHODS["liveliest"].steps]
    assert made.what == METHODS["liveliest"].what
