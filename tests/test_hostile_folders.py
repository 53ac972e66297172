"""Folders of runs, searches and packages that came from somebody else: nothing outside is written, removed or taken along."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import exporters
from compress.commands.demo import make_demo
from compress.errors import BadInput
from compress.pipeline.lock import locked
from compress.pipeline.workspace import open_workspace
from compress.recipe import make
from tests.runs import invoke, made_run, model_and_data


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A folder of somebody's, with what is worth keeping."""
    folder = tmp_path / "victim"
    (folder / ".ssh").mkdir(parents=True)
    (folder / ".ssh" / "id").write_text("a key")
    (folder / "secret.txt").write_text("a secret")
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


BEGUN = {
    "data": ["out/pictures/a-{0..1}-train.tar", "out/*/a-*-train.tar", "beside.toml", "out/pictures/net.py:data"],
    "arch": ["out/pictures/net.py:Net", "hf:out/pictures", "hf:out/pictures/a:b"],
    "metric": ["out/pictures/net.py:metric"],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in BEGUN.items() for value in values])
def test_force_removes_nothing_that_a_pattern_or_a_file_of_functions_names(key: str, value: str, here: Path):
    as_a_run(here / "out")
    (here / "out" / "pictures").mkdir(exist_ok=True)
    for name in ("a-0-train.tar", "a-1-train.tar", "net.py"):
        (here / "out" / "pictures" / name).write_text("mine")
    (here / "beside.toml").write_text('source = "out/pictures/a-{0..1}-train.tar"\n')
    recipe = make(**{"model": "model.pt", "data": "data.npz", "target": "macs=0.5", key: value})
    before = contents(here)
    with (
        pytest.raises(BadInput, match=f"--{key} .* is one of the files of"),
        open_workspace(here / "out", recipe, resume=False, force=True),
    ):
        pass
    assert contents(here) == before


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def as_a_run(folder: Path) -> Path:
    """The folder of a run that stopped behind its first stage."""
    recipe = make(model="model.pt", data="data.npz", target="macs=0.5", epochs=0.0)
    with open_workspace(folder, recipe, resume=False, force=False) as workspace:
        workspace.finish(0, "dense", lambda _: {})
    return folder


@pytest.mark.parametrize("force", [False, True])
def test_a_recipe_that_somebody_wrote_is_never_replaced(force: bool, here: Path):
    model_and_data(here)
    own = '# mine\nmodel = "model.pt"\ndata = "data.npz"\n'
    (here / "own").mkdir()
    (here / "own" / "recipe.toml").write_text(own)
    recipe = make(model="model.pt", data="data.npz", target="macs=0.5", epochs=0.0)
    refused = pytest.raises(BadInput, match=r"holds a recipe\.toml that somebody wrote")
    with refused, open_workspace(here / "own", recipe, resume=False, force=force):
        pass
    assert (here / "own" / "recipe.toml").read_text() == own


@pytest.mark.parametrize("key", ["model", "data", "plan"])
def test_force_removes_nothing_that_the_run_begins_with(key: str, here: Path):
    as_a_run(here / "out")
    (here / "out" / "model.compressed").mkdir(exist_ok=True)
    inside = {"model": "out/model.compressed", "data": "out/pictures/data.npz", "plan": "out/plan.json"}
    (here / "out" / "pictures").mkdir(exist_ok=True)
    (here / "out" / "pictures" / "data.npz").write_text("mine")
    (here / "out" / "plan.json").write_text("{}")
    recipe = make(**{"model": "model.pt", "data": "data.npz", "target": "macs=0.5", key: inside[key]})
    before = contents(here / "out")
    refused = pytest.raises(BadInput, match=f"{key} {inside[key]} is one of the files")
    with refused, open_workspace(here / "out", recipe, resume=False, force=True):
        pass
    assert contents(here / "out") == before


@pytest.mark.parametrize(
    "words",
    [
        ("package", "run", "--out", "run/model.onnx"),
        ("package", "run", "--samples", "samples.npz", "--out", "samples.npz"),
        ("push", "run", "--out", "run/model.compressed"),
        ("report", "run", "--out", "run/report.json"),
        ("export", "run/model.compressed", "--out", "run/model.compressed"),
        ("export", "run/model.compressed", "--out", "run/model.compressed/graph.json"),
        ("apply", "run/plan.json", "run/model.compressed", "--out", "run/plan.json"),
        ("finetune", "run/model.compressed", "--data", "digits", "--out", "run"),
        ("export", "run/model.compressed", "--data", "d.npz", "--format", "onnx-int8", "--out", "d.npz"),
        ("plan", "run/model.compressed", "--data", "d.npz", "--out", "d.npz"),
    ],
)
def test_force_replaces_nothing_that_the_command_reads(words: tuple[str, ...], here: Path):
    (here / "run").mkdir()
    made_run(here / "run")
    (here / "samples.npz").write_bytes(b"mine")
    shutil.copy(here / "run" / "data.npz", here / "d.npz")
    before = bytes_of(here)
    done = invoke(*words, "--force")
    assert done.exit_code == 2 and "from which it is made" in done.stderr and bytes_of(here) == before


@pytest.mark.parametrize("name", ["report.json", "model.onnx", "../run/./model.onnx", "model.compressed/graph.json"])
@pytest.mark.parametrize("option", ["--junit", "--markdown", "--baseline"])
def test_a_gate_writes_over_nothing_of_the_run_that_it_judges(option: str, name: str, here: Path):
    (here / "run").mkdir()
    made_run(here / "run")
    before = bytes_of(here)
    more = ["--update-baseline"] if option == "--baseline" else []
    done = invoke("gate", "run", "--max-drop", 50, option, f"run/{name}", *more)
    said = "would replace" in done.stderr or "is a file of the run" in done.stderr
    assert done.exit_code == 2 and f"{option} run/" in done.stderr and said and bytes_of(here) == before


def test_a_gate_writes_over_nothing_of_the_run_that_it_compares_with_and_nothing_twice(here: Path):
    for name in ("run", "earlier"):
        (here / name).mkdir()
        made_run(here / name)
    before = bytes_of(here)
    compared = ("gate", "run", "--baseline", "earlier/report.json", "--tolerance", "latency=500%")
    done = invoke(*compared, "--junit", "earlier/model.onnx")
    assert done.exit_code == 2 and "earlier/model.onnx is a file of the run" in done.stderr and bytes_of(here) == before
    (here / "begun" / "stages").mkdir(parents=True)
    shutil.copy(here / "run" / "recipe.toml", here / "begun")
    before = bytes_of(here)
    done = invoke(*compared, "--junit", "begun/model.onnx")
    assert done.exit_code == 2 and "begun/model.onnx is a file of the run" in done.stderr and bytes_of(here) == before
    done = invoke(*compared, "--junit", "found", "--markdown", "./found")
    assert done.exit_code == 2 and "--markdown and --junit are both found" in done.stderr and bytes_of(here) == before


@pytest.mark.parametrize("name", ["compare.svg", "compare.md", "compare.json"])
@pytest.mark.parametrize("force", [False, True])
def test_a_comparison_is_written_through_no_link(name: str, force: bool, victim: Path, here: Path):
    for run in ("run", "other"):
        (here / run).mkdir()
        made_run(here / run)
    (here / "out").mkdir()
    (here / "out" / name).symlink_to(victim / ("secret.txt" if force else "new.txt"))
    before = contents(victim)
    done = invoke("compare", "run", "other", "--out", "out", *(["--force"] if force else []))
    assert done.exit_code == (0 if force else 2) and contents(victim) == before
    assert (here / "out" / name).is_symlink() != force


def test_the_demonstration_writes_its_model_through_no_link(victim: Path, here: Path):
    (here / "demo-out").mkdir()
    (here / "demo-out" / "model.pt").symlink_to(victim / "new.pt")
    make_demo(here / "demo-out", epochs=0.01)
    assert not (victim / "new.pt").exists() and (here / "demo-out" / "model.pt").is_file()
    assert not (here / "demo-out" / "model.pt").is_symlink()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("name", ["search.json", "stages", "pictures/holiday.jpg", "stages/", "model.onnx"])
def test_names_of_a_run_without_its_recipe_are_somebody_s_own(name: str, force: bool, here: Path):
    place = here / "own" / name
    place.parent.mkdir(parents=True)
    place.mkdir() if name.endswith("/") else place.write_text("mine")
    before = sorted(map(str, here.rglob("*")))
    recipe = make(model="model.pt", data="data.npz", target="macs=0.5", epochs=0.0)
    refused = pytest.raises(BadInput, match=r"and no recipe\.toml, which a run writes first")
    with refused, open_workspace(here / "own", recipe, resume=False, force=force):
        pass
    assert sorted(str(path) for path in here.rglob("*") if path.name != ".lock") == before


def test_a_plan_does_not_lie_where_the_model_that_it_makes_goes(here: Path):
    model_and_data(here)
    done = invoke("plan", "model.pt", "--data", "data.npz", "--apply-to", "model.pt", "--out", "./model.compressed", "--force")
    assert done.exit_code == 2 and "is where the smaller model goes" in done.stderr
    assert not (here / "model.compressed").exists()


def test_a_comparison_replaces_no_report_that_it_reads(here: Path):
    for name in ("run", "other"):
        (here / name).mkdir()
        made_run(here / name)
    (here / "run" / "report.json").rename(here / "run" / "compare.json")
    before = bytes_of(here)
    done = invoke("compare", "run/compare.json", "other", "--out", "run", "--force")
    assert done.exit_code == 2 and "would replace run/compare.json" in done.stderr and bytes_of(here) == before


@pytest.mark.parametrize("words", [("plan", "--allow-doubtful"), ("export", "--format", "onnx")])
def test_force_replaces_no_picture_of_the_data(words: tuple[str, ...], here: Path):
    model_and_data(here)
    for number in range(8):
        place = here / "pics" / f"class{number % 2}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (30 * number,) * 3).save(place)
    before = bytes_of(here)
    command, *more = words
    done = invoke(command, "model.pt", "--data", "pics", "--out", "pics/class0/0.png", "--force", *more)
    assert done.exit_code == 2 and "from which it is made" in done.stderr and bytes_of(here) == before


def test_a_search_that_begins_with_its_own_best_model_does_not_remove_it(here: Path):
    model_and_data(here)
    (here / "tune" / "best").mkdir(parents=True)
    shutil.move(here / "model.pt", here / "tune" / "best" / "model.pt")
    before = bytes_of(here)
    done = invoke("tune", "tune/best/model.pt", "--data", "data.npz", "--epochs", 0, "--trials", 3, "--out", "tune", "--force")
    assert done.exit_code == 2 and "--model tune/best/model.pt is one of the files" in done.stderr and bytes_of(here) == before


@pytest.mark.parametrize("out", ["data/out", "data", "data/train/out"])
@pytest.mark.parametrize("how", [("run",), ("run", "--methods", "magnitude,random"), ("tune", "--trials", 3), ("finetune",)])
def test_results_do_not_lie_among_the_data(how: tuple[object, ...], out: str, here: Path):
    command, *more = how
    model_and_data(here)
    for number in range(8):
        place = here / "data" / "train" / f"class{number % 2}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (30 * number,) * 3).save(place)
    before = bytes_of(here)
    done = invoke(command, "model.pt", "--data", "data", "--epochs", 0, "--out", out, "--force", *more)
    words = ("lies in the folder of --data", "not of a search", "from which it is made", "is a folder with other files")
    said = any(one in done.stderr for one in words)
    assert done.exit_code == 2 and said and bytes_of(here) == before


@pytest.mark.parametrize("out", ["model.compressed", "model.compressed/out"])
def test_results_do_not_lie_in_the_model(out: str, here: Path):
    (here / "model.compressed").mkdir()
    recipe = make(model="model.compressed", data="digits", target="macs=0.5")
    with (
        pytest.raises(BadInput, match=r"lies in the model model\.compressed, which"),
        open_workspace(here / out, recipe, resume=False, force=True),
    ):
        pass
    assert list((here / "model.compressed").iterdir()) == []


def test_results_may_lie_beside_the_parts_of_the_data(here: Path):
    for part in ("train", "test"):
        (here / part / "a").mkdir(parents=True)
    recipe = make(model="model.pt", data=".", target="macs=0.5")
    with open_workspace(here / "out", recipe, resume=False, force=False):
        pass
    refused = pytest.raises(BadInput, match="lies in the folder of --data")
    with refused, open_workspace(here / "train" / "out", recipe, resume=False, force=False):
        pass
    shutil.rmtree(here / "test")  # with one part alone, all folders are classes
    with refused, open_workspace(here / "out", recipe, resume=False, force=True):
        pass


LINKS = {
    ".lock": "secret.txt",
    "stages": ".",
    "stages/01-analyze": ".ssh",
    "stages/00-dense/stage.json": "secret.txt",
    "profile": ".",
    "model.compressed": ".",
    "pictures": ".",
    ".stages.1-2-3-4.part": ".",
}


@pytest.mark.parametrize("how", [[], ["--resume"], ["--force"]])
@pytest.mark.parametrize("name", LINKS)
def test_a_run_follows_no_link_of_its_folder(name: str, how: list[str], victim: Path, here: Path):
    model_and_data(here)
    place, before = as_a_run(here / "out") / name, contents(victim)
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    place.symlink_to(victim / LINKS[name])
    done = invoke("run", "model.pt", "--data", "data.npz", "--target", "macs=0.5", "--epochs", 0, "--out", "out", *how)
    assert done.exit_code == 2 and "is a link" in done.stderr and contents(victim) == before


@pytest.mark.parametrize("name", [".lock", "recipe.toml", "stages/00-dense/stage.json"])
def test_a_run_waits_for_no_pipe_in_its_folder(name: str, here: Path):
    model_and_data(here)
    place = as_a_run(here / "out") / name
    place.unlink(missing_ok=True)
    os.mkfifo(place)
    done = invoke("run", "model.pt", "--data", "data.npz", "--target", "macs=0.5", "--epochs", 0, "--out", "out", "--resume")
    assert done.exit_code == 2 and "is a pipe" in done.stderr


def test_somebody_s_own_link_beside_a_run_is_let_be(victim: Path, here: Path):
    (as_a_run(here / "out") / "mine").symlink_to(victim)
    recipe = make(model="model.pt", data="data.npz", target="macs=0.5", epochs=0.0)
    with open_workspace(here / "out", recipe, resume=True, force=False) as workspace:
        assert workspace.finished() == ("dense",)


@pytest.mark.parametrize(("command", "name"), [("run", "magnitude"), ("run", ".lock"), ("tune", "trials"), ("tune", "best")])
def test_several_runs_follow_no_link_of_their_folder(command: str, name: str, victim: Path, here: Path):
    model_and_data(here)
    (here / "out").mkdir()
    (here / "out" / name).symlink_to(victim / "secret.txt" if name == ".lock" else victim)
    before = contents(victim)
    how = ["--methods", "magnitude,random"] if command == "run" else ["--trials", 3]
    done = invoke(command, "model.pt", "--data", "data.npz", "--epochs", 0, "--out", "out", "--force", *how)
    assert done.exit_code == 2 and "is a link" in done.stderr and contents(victim) == before


@pytest.mark.parametrize("command", ["package", "push"])
def test_nothing_outside_of_a_run_is_taken_along(command: str, victim: Path, here: Path):
    (here / "run").mkdir()
    run = made_run(here / "run")
    (run / "model.onnx.data").symlink_to(victim / "secret.txt")
    done = invoke(command, run, "--out", "made.tar.gz" if command == "package" else "made")
    assert done.exit_code == 2 and "is a link" in done.stderr and not list(here.glob("made*"))


@pytest.mark.parametrize("command", ["package", "push"])
def test_weights_beside_a_model_are_read_up_to_a_limit(command: str, here: Path):
    (here / "run").mkdir()
    run = made_run(here / "run")
    with (run / "model.onnx.data").open("wb") as file:
        file.truncate(10 << 30)
    done = invoke(command, run, "--out", "made.tar.gz" if command == "package" else "made")
    assert done.exit_code == 2 and "are read" in done.stderr and not list(here.glob("made*"))


def test_a_lock_is_no_other_file(victim: Path, here: Path):
    as_a_run(here / "out")
    os.link(victim / "secret.txt", here / "out" / ".lock")
    with pytest.raises(BadInput, match="hard link"), locked(here / "out"):
        pass
    assert (victim / "secret.txt").read_text() == "a secret"


def test_a_report_s_words_stay_on_their_line(here: Path):
    for name in ("one", "other"):
        (here / name).mkdir()
        path = made_run(here / name) / "report.json"
        report = json.loads(path.read_text())
        report["stages"].append(report["stages"][0] | {"stage": "remove"})
        report |= {"warnings": ["fine\n::error::not"], "verdict": "so\u2028::warning::so", "method": "m\r\n::debug::m"}
        del report["checksum"]
        path.write_text(json.dumps(report))
    for words in (("gate", "one", "--max-drop", 50), ("compare", "one", "other"), ("diff", "one", "other")):
        done = invoke(*words)
        assert done.exit_code in (0, 5), done.stderr
        said = (done.stdout + done.stderr).splitlines()
        assert said and not [line for line in said if line.lstrip().startswith("::")]


def test_the_sums_of_a_package_are_a_file(here: Path):
    (here / "package").mkdir()
    os.mkfifo(here / "package" / "SHA256SUMS")
    done = invoke("verify", "package")
    assert done.exit_code == 2 and "no plain file" in done.stderr


@pytest.mark.parametrize("format", ["pt2", "torchscript"])
def test_a_program_of_torch_is_timed_for_those_who_trust_it(format: str, here: Path):
    path = here / f"model.{format}"
    exporters.export(format, nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), (torch.zeros(1, 1, 8, 8),), path)
    words = ("bench", path, "--input-shape", "1x8x8", "--rounds", 5)
    done = invoke(*words)
    assert done.exit_code == 2 and "whoever wrote it" in done.stderr
    assert invoke(*words, "--trust-pickle").exit_code == 0


@pytest.mark.parametrize("words", ["[" * 100_000, "{" * 4000, '"' + 10_000 * "x", "\0\1", '{"pid": [], "host": {}, "since": 1}'])
def test_a_lock_that_says_nonsense_is_held_or_not(words: str, here: Path):
    as_a_run(here / "out")
    (here / "out" / ".lock").write_text(words)
    with (here / "out" / ".lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BadInput, match="in use by another run"), locked(here / "out"):
            pass
    with locked(here / "out") as lock:
        assert lock.holds
