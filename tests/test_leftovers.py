"""What killed processes leave: no process, and names that the next run knows as theirs."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import SafetensorError
from torch import nn

from compress.cli.main import cli
from compress.errors import BadInput
from compress.measure.latency import Timing
from compress.pipeline import remembered
from compress.pipeline.lock import locked
from compress.pipeline.workspace import open_workspace
from compress.recipe import make
from exporters import ExportError, isolated
from exporters.standalone import leftovers, tied

ROOT = Path(__file__).resolve().parent.parent


def processes(word: str) -> list[int]:
    """Processes on whose command line a word stands."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if word in (folder / "cmdline").read_text() and leftovers.started(int(folder.name)) is not None:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for something."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives."""
    child = subprocess.Popen(["sleep", "60"])
    yield child
    child.kill()
    child.wait()


def of(pid: int, start: int | None = None) -> str:
    """A mark."""
    return f"{pid}-{leftovers.started(pid) if start is None else start}-{leftovers.machine()}"


# ---- marks ------------------------------------------------------------------------------------------------------------------


def test_a_mark_is_dead_with_its_process_and_not_before(gone: int, sleeper: subprocess.Popen[bytes]):
    living = of(sleeper.pid)
    assert leftovers.dead(leftovers.hidden("report.json") + "part") is False
    assert leftovers.dead(f".report.json.{living}.48151623") is False  # what follows the mark is random, and here a number
    assert leftovers.dead(f".report.json.{sleeper.pid}") is False and leftovers.dead(f".report.json.{gone}") is True
    assert leftovers.dead(f".report.json.{of(gone, 5)}.part") is True
    assert leftovers.dead(f".report.json.{of(sleeper.pid, 5)}.part") is True  # the number was given again
    assert leftovers.dead(f"{leftovers.TEMPORARY}{of(gone, 5)}-x_4") is True
    assert leftovers.dead(f"{leftovers.TEMPORARY}{living}-12345678") is False
    sleeper.kill()
    until(lambda: leftovers.dead(f".report.json.{living}.part"))  # also before its parent has asked for it


@pytest.mark.parametrize("name", [".report.json", "report.json", ".a.4711-12-00000000.part", f"{leftovers.TEMPORARY}abcdefgh"])
def test_what_has_no_mark_or_that_of_another_machine_cannot_be_told(name: str):
    assert leftovers.dead(name) is None


def test_the_start_of_a_process_is_known_without_proc(sleeper: subprocess.Popen[bytes], gone: int):
    assert leftovers._started(sleeper.pid) == leftovers._started(sleeper.pid) is not None and leftovers._started(gone) is None


def test_a_temporary_folder_takes_those_of_the_dead_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: int):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    others = ("compress-abcdefgh", "thesis", "compress-2024-backup", f"compress-{gone}-notes", "compress-20240101-mine.tar")
    for name in (f"compress-{of(gone, 5)}-aaaa", f"compress-{of(os.getppid())}-aaaa", *others):
        (tmp_path / name / "inside").mkdir(parents=True)
    with leftovers.folder() as made:
        assert made.is_dir() and leftovers.dead(made.name) is False
    assert {p.name for p in tmp_path.iterdir()} == {f"compress-{of(os.getppid())}-aaaa", *others}


def test_a_run_removes_what_dead_runs_left_in_its_folder_and_nothing_else(
    tmp_path: Path, gone: int, sleeper: subprocess.Popen[bytes]
):
    recipe, out = make(model="model.pt"), tmp_path / "out"
    with open_workspace(out, recipe, resume=False, force=False):
        (out / "stages" / "00-dense").mkdir(parents=True)
    living = [f".report.json.{sleeper.pid}", f".model.onnx.{of(sleeper.pid)}.abc", f".thesis.{gone}", "notes.txt"]
    planted = [f".report.json.{gone}", f".plan.json.{of(gone, 5)}.part"]
    folders = [f".model.compressed.{of(gone, 5)}.abcd", f".model.compressed.old.{of(gone, 5)}.abcd", f"stages/.01-x.{gone}"]
    for name in (*living, *planted):
        (out / name).write_text("")
    for name in (*folders, f"stages/.01-y.{of(sleeper.pid)}.stage", "stages/.02-z.4711-12-00000000.stage"):
        (out / name / "inside").mkdir(parents=True)
    with open_workspace(out, recipe, resume=True, force=False):
        assert {p.name for p in out.iterdir()} == {"recipe.toml", "stages", ".lock", *living}
        # Nobody but the holder of the lock writes stages: those of another machine are dead, too.
        assert {p.name for p in (out / "stages").iterdir()} == {"00-dense", f".01-y.{of(sleeper.pid)}.stage"}


# ---- processes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("linux", [True, False])
def test_a_child_ends_with_its_parent_however_that_ends(linux: bool, tmp_path: Path):
    if linux and not sys.platform.startswith("linux"):
        pytest.skip("the kernel does not do that here")
    (tmp_path / "child.py").write_text(f"import pathlib, time\npathlib.Path({str(tmp_path)!r}, 'up').touch()\ntime.sleep(60)")
    starting = f"from exporters.standalone import tied; import sys; sys.exit(tied.main(int(sys.argv[1]), sys.argv[2:], {linux}))"
    command = [sys.executable, "-c", starting, "PARENT", sys.executable, str(tmp_path / "child.py")]
    (tmp_path / "parent.py").write_text(
        "import os, subprocess, time\n"
        f"subprocess.Popen([str(os.getpid()) if word == 'PARENT' else word for word in {command!r}])\ntime.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], env=environment(tmp_path))
    until((tmp_path / "up").exists)
    assert processes(str(tmp_path / "child.py"))
    parent.kill()
    parent.wait()
    until(lambda: not processes(str(tmp_path / "child.py")), 10)


def test_a_tied_command_is_the_command():
    code = "import sys; print(sys.stdin.read(), sys.argv[1]); sys.exit(7)"
    done = subprocess.run(tied.tied([sys.executable, "-c", code, "word"]), input=b"given", capture_output=True)
    assert (done.returncode, done.stdout.split()) == (7, [b"given", b"word"])
    killed = subprocess.run(tied.tied([sys.executable, "-c", "import os; os.abort()"]), capture_output=True)
    assert killed.returncode in (-signal.SIGABRT, 128 + signal.SIGABRT)
    missing = subprocess.run(tied.tied(["no-such-command"]), capture_output=True, text=True)
    assert (missing.returncode, missing.stderr) == (127, "no-such-command: No such file or directory\n")
    assert tied.main(1 if os.getppid() != 1 else 2, ["true"], linux=False) == 1  # the parent was gone before


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a model and data."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)).eval()
    torch.save(net, tmp_path / "model.pt")
    random = np.random.default_rng(0)
    arrays = {f"x_{name}": random.standard_normal((n, 1, 8, 8)).astype(np.float32) for name, n in (("train", 60), ("test", 40))}
    np.savez(tmp_path / "data.npz", **arrays, y_train=np.arange(60) % 10, y_test=np.arange(40) % 10)
    (tmp_path / "tmp").mkdir()
    return tmp_path


def command(*more: str) -> list[str]:
    quick = "--target params=0.5 --align 1 --epochs 0 --rounds 5 --calibration 40 --int8-error 0.2 --export onnx,onnx-int8"
    return [sys.executable, "-m", "compress", "run", "model.pt", "--data", "data.npz", *quick.split(), *more]


def environment(place: Path) -> dict[str, str]:
    return os.environ | {"TMPDIR": str(place / "tmp"), "PYTHONPATH": str(ROOT), "COMPRESS_CACHE": str(place / "cache")}


def test_a_killed_run_leaves_no_process_and_the_next_one_takes_its_traces_away(place: Path):
    shared = {p.name for p in Path("/dev/shm").glob("*")}
    run = subprocess.Popen(command(), cwd=place, env=environment(place), stderr=subprocess.DEVNULL)
    # The child that exports has the temporary folder on its command line.
    until(lambda: processes(str(place / "tmp")))
    run.kill()
    run.wait()
    until(lambda: not processes(str(place / "tmp")), 10)
    assert list((place / "tmp").iterdir())
    again = subprocess.run(command("--resume"), cwd=place, env=environment(place), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert list((place / "tmp").iterdir()) == [] and not list((place / "out").glob(".*"))
    assert {p.name for p in Path("/dev/shm").glob("*")} <= shared
    assert [e["format"] for e in json.loads((place / "out/report.json").read_text())["exports"]] == ["onnx", "onnx-int8"]


# ---- two runs in one folder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--force",), ("--resume",), ("--methods", "entropic,magnitude", "--force")])
def test_a_folder_in_use_is_refused_and_left_alone(place: Path, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    holding = (
        "import pathlib, sys, time; from compress.pipeline.lock import locked\n"
        "with locked(pathlib.Path('out')):\n    print('locked', flush=True); time.sleep(60)"
    )
    (place / "out").mkdir()
    (place / "out" / "report.json").write_text("theirs")
    holder = subprocess.Popen([sys.executable, "-c", holding], cwd=place, env=environment(place), stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline()
    monkeypatch.chdir(place)
    done = CliRunner().invoke(cli, command(*more)[3:])
    refusals = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert done.exit_code == 2 and len(refusals) == 1, done.stderr
    assert f"out is in use by another run (process {holder.pid} on " in refusals[0] and f"kill {holder.pid}" in refusals[0]
    assert (place / "out" / "report.json").read_text() == "theirs"
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with locked(place / "out"):  # what a dead process left there holds nothing
        pass
    assert {p.name for p in (place / "out").iterdir()} == {"report.json"}


def test_without_locks_of_the_system_the_words_in_the_file_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes]
):
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    told = {"pid": sleeper.pid, "host": "here", "since": "today", "mark": of(sleeper.pid)}
    (tmp_path / ".lock").write_text(json.dumps(told))
    with pytest.raises(BadInput, match=f"process {sleeper.pid} on here, since today"), locked(tmp_path):
        pass
    sleeper.kill()
    sleeper.wait()
    with locked(tmp_path) as lock:
        assert lock.holds
    assert list(tmp_path.iterdir()) == []


# ---- a folder that goes, a disk that fills ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where", ["compress.refit.refit.refitted", "compress.pipeline.run.export_all", "compress.pipeline.final_report.draw"]
)
def test_a_folder_that_is_deleted_meanwhile_is_told(place: Path, where: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    module, name = where.rsplit(".", 1)
    honest = getattr(importlib.import_module(module), name)

    def deleting(*given: object, **more: object) -> object:
        shutil.rmtree(place / "out")
        return honest(*given, **more)

    monkeypatch.setattr(where, deleting)
    done = CliRunner().invoke(cli, [*command()[3:], "--export", "onnx"])
    assert done.exit_code == 2, done.output
    assert "out was deleted or replaced while the run was going on" in done.stderr.splitlines()[-1]
    assert not (place / "out" / "report.json").exists()


def test_a_disk_that_fills_up_while_exporting_is_no_fault_of_the_model(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    honest = os.replace

    def full(source: Path, target: Path) -> None:
        if Path(target).name == "model.onnx" and Path(target).parent.name == "out":
            raise OSError(28, "No space left on device")
        honest(source, target)

    monkeypatch.setattr(os, "replace", full)
    done = CliRunner().invoke(cli, [*command()[3:], "--export", "onnx"])
    assert done.exit_code == 2, done.output
    assert "out cannot be written (No space left on device). Make room there; finished stages are kept (dense" in done.stderr
    assert not list((place / "out").glob(".*"))
    monkeypatch.setattr(os, "replace", honest)
    assert CliRunner().invoke(cli, [*command("--resume")[3:], "--export", "onnx"]).exit_code == 0


def test_a_disk_that_fills_up_under_weights_is_told_with_what_is_kept(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patched:
        patched.setattr("compress.checkpoint.save.save_file", full)
        done = CliRunner().invoke(cli, [*command()[3:], "--export", "onnx"])
    assert done.exit_code == 2, done.output
    assert "No space left" in done.stderr and "inished stages are kept (dense, analyze): add --resume" in done.stderr
    assert CliRunner().invoke(cli, [*command("--resume")[3:], "--export", "onnx"]).exit_code == 0


@pytest.mark.parametrize(
    "said", ["PytorchStreamWriter failed writing file data/0: file write failed", "unexpected pos 51008 vs 50904"]
)
def test_no_room_for_the_model_on_its_way_to_the_exporting_process_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str
):
    def full(*_: object) -> None:
        raise RuntimeError(f"[enforce fail at inline_container.cc:672] . {said}")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ExportError, match=r"cannot be written to .* Make room there, or set TMPDIR"):
        isolated.export("onnx", nn.Linear(4, 2), (torch.zeros(1, 4),), tmp_path / "net.onnx")


def test_two_processes_share_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COMPRESS_CACHE", str(tmp_path))
    timing = {f.name: 1 for f in dataclasses.fields(Timing)}
    remembered.remember("latency.json", Timing, {"one": timing})
    remembered.remember("latency.json", Timing, {"other": timing})  # of a process that read the file before the first was in it
    assert set(json.loads((tmp_path / "latency.json").read_text())) == {"one", "other"}
