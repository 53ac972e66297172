"""A search over recipes: each trial done once by whoever works, and the runs that no other one beats."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import compress
from compress.data import open_data
from compress.errors import BadInput, Infeasible, NotWritten
from compress.method_table import METHODS
from compress.pipeline.harness import Harness
from compress.recipe import make
from compress.tuning import front, space, study, trials
from compress.tuning.front import Tried, Tuning
from compress.tuning.space import Choice, Range

optuna = pytest.importorskip("optuna")

QUICK: dict[str, Any] = {
    "data": "digits",
    "epochs": 0,
    "rounds": 5,
    "device": "cpu",
    "minimize": "macs",
    "depth": 0,
    "allow_doubtful": True,
}
WORKER = """
import sys, time
from compress.tuning import study
mine = study.joined(sys.argv[1], "s")
while (trial := mine.next(0)) is not None:
    with mine.beating(trial):
        x = trial.suggest_float("x", 0, 1)
        print(trial.number, flush=True)
        time.sleep(float(sys.argv[2]))
        mine.tell(trial, (x, 1 - x), {"values": {"x": str(x)}})
"""


def worker(place: str, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WORKER, place, str(seconds)], stdout=subprocess.PIPE, text=True)


def places(tmp_path: Path, kind: str) -> str:
    return {"sqlite": f"sqlite:///{tmp_path / 's.db'}", "journal": str(tmp_path / "s.journal")}[kind]


def three_workers_one_killed(place: str) -> None:
    """None lost, none double."""
    made = study.made(place, "s", 9, [{"x": 0.25}], {})
    workers = [worker(place, 0.2) for _ in range(2)]
    victim = worker(place, 60)
    assert victim.stdout is not None
    taken = int(victim.stdout.readline())
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    told = sorted(int(line) for one in workers for line in one.communicate(timeout=60)[0].split())
    assert [one.returncode for one in workers] == [0, 0]
    done = [one for one in made.trials if one.state.name == "COMPLETE"]
    assert len(done) == 9 and told == sorted(one.number for one in done)
    assert made.trials[taken].state.name == "FAIL" and done[-1].system_attrs["failed_trial"] == taken
    assert made.trials[0].params["x"] == 0.25 or taken == 0


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_each_trial_is_done_once_and_that_of_a_killed_worker_again(tmp_path: Path, kind: str):
    three_workers_one_killed(places(tmp_path, kind))


def test_the_same_values_come_whoever_gets_a_trial(tmp_path: Path):
    drawn: list[list[float]] = []
    for name in ("a", "b"):
        made = study.made(f"sqlite:///{tmp_path}/{name}.db", "s", 4, [], {})
        drawn.append([])
        while (trial := made.next(7)) is not None:
            drawn[-1].append(trial.suggest_float("x", 0, 1))
            made.tell(trial, (0.0, 1.0), {})
    assert drawn[0] == drawn[1] and len(set(drawn[0])) == 4


def test_an_interrupted_trial_goes_back_into_the_queue_as_often_as_it_takes(tmp_path: Path):
    made = study.made(f"sqlite:///{tmp_path}/s.db", "s", 1, [], {})
    for _ in range(5):
        trial = made.next(0)
        assert trial is not None
        with pytest.raises(KeyboardInterrupt), made.beating(trial):
            raise KeyboardInterrupt
    assert [one.state.name for one in made.trials] == ["FAIL"] * 5 + ["WAITING"]


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("sqlite:////nowhere/at/all.db", "cannot be used"),
        ("nowhere/at/all.journal", "The folder of --storage nowhere/at/all.journal does not exist"),
        ("oracle-of-delphi://x", "cannot be used"),
    ],
)
def test_a_storage_that_cannot_be_reached_is_refused(place: str, says: str):
    with pytest.raises(BadInput, match=says):
        study.made(place, "s", 1, [], {})


def test_a_storage_that_goes_away_is_told(tmp_path: Path):
    made = study.made(f"sqlite:///{tmp_path}/s.db", "s", 2, [], {})
    trial = made.next(0)
    assert trial is not None
    with __import__("sqlite3").connect(tmp_path / "s.db") as database:
        database.execute("DROP TABLE trials")
    with pytest.raises(NotWritten, match=r"does not answer any more .*--join when it is back"):
        made.next(0)


def test_no_password_is_shown():
    assert study.shown("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"


def test_a_second_study_of_a_name_and_one_that_is_not_there_are_refused(tmp_path: Path):
    place = f"sqlite:///{tmp_path}/s.db"
    with pytest.raises(BadInput, match="--trials is 0; needed is one or more"):
        study.made(place, "s", 0, [], {})
    study.made(place, "s", 1, [], {})
    with pytest.raises(BadInput, match=r"There is a study 's' in .* already. Add --join"):
        study.made(place, "s", 1, [], {})
    with pytest.raises(BadInput, match=r"There is no study 't' in .*, which has: s. Leave --join out"):
        study.joined(place, "t")


BASE = make(model="a.pt", data="digits", epochs=1)


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("method=entropic, obs", "method", Choice(("entropic", "obs"))),
        ("lr=1e-4..1e-2", "lr", Range(1e-4, 1e-2)),
        ("batch-size=32..256", "batch_size", Range(32, 256, whole=True)),
        ("target=macs=0.5,params=0.3", "target", Choice(("macs=0.5", "params=0.3"))),
        ("export=onnx+onnx-int8,onnx", "export", Choice(("onnx+onnx-int8", "onnx"))),
    ],
)
def test_what_is_searched_is_read(text: str, name: str, values: object):
    assert space.space(BASE, {"target"} - {name}, [text]) == {name: values}
    assert space.read(space.written({name: values})) == {name: values}  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lr", "needed is NAME=VALUE,VALUE or NAME=LOW..HIGH"),
        ("seed=1,2", "'seed', which is not searched"),
        ("tarket=0.2..0.8", r"which is not searched; .* Did you mean target\?"),
        ("model=a,b", "'model', which is not searched; what is: method"),
        ("lr=0.1..0.01", "a smaller number first"),
        ("lr=a..b", "needed are two numbers"),
        ("lr=-1..1", "--over lr cannot be -1"),
        ("method=entropic,entropc", "--over method cannot be entropc"),
        ("target=0.5", "both say what it is"),
    ],
)
def test_what_cannot_be_searched_is_refused(text: str, says: str):
    with pytest.raises(BadInput, match=says):
        space.space(BASE, {"target"}, [text])


def test_what_is_set_is_not_searched_and_a_target_always_is_unless_set():
    assert "method" not in space.space(BASE, {"method"}, []) and "lr" in space.space(BASE, {"method"}, [])
    assert set(space.space(BASE, set(), ["lr=none,0.01"])) == {"lr", "target"}
    assert "iterations" not in space.space(make(model="a.pt", data="digits", epochs=0), set(), [])
    with pytest.raises(BadInput, match="Every setting that is searched was given"):
        space.space(BASE, set(space.SEARCHED), [])


def test_values_become_the_settings_of_a_recipe():
    values = {"lr": "none", "target": "0.25", "export": "onnx+onnx-int8", "iterations": "2", "align": "none"}
    made = space.recipe_of(make(model="a.pt", data="digits", epochs=1, lr=1, minimize="size"), values)
    assert (made.lr, made.target, made.export, made.iterations) == (None, "params=0.25", ("onnx", "onnx-int8"), 2)


def done(*figures: tuple[float, float, float, float]) -> Any:
    """A study of finished trials, each of (looked lost, looked left, lost, left)."""
    rows = [({"look": a, "look_left": b}, (c, d)) for a, b, c, d in figures]
    found = [type("T", (), {"user_attrs": facts, "values": values}) for facts, values in rows]
    return type("S", (), {"trials": found})


LOOKED = [(4.0, 0.5, 2.0, 0.5), (3.0, 0.6, 1.0, 0.6), (5.0, 0.4, 3.0, 0.4), (2.5, 0.7, 0.5, 0.7), (8.0, 0.3, 6.0, 0.3)]


@pytest.mark.parametrize(
    ("lost", "left", "count", "hopeless"),
    [
        (9.0, 0.65, 5, True),  # better then: three of them
        (4.5, 0.45, 5, False),
        (3.5, 0.55, 5, False),
        (9.0, 0.65, 4, False),  # too few to tell
        (10.5, 0.3, 5, True),  # two points are the most that was won back: 8.5 against 6
        (8.5, 0.29, 5, False),
    ],
)
def test_a_look_tells_what_is_hopeless(lost: float, left: float, count: int, hopeless: bool):
    one = trials.Worker(done(*LOOKED[:count]), None, None, {}, Path(), None, None)  # type: ignore[arg-type]
    assert (one._hopeless(lost, left) is not None) == hopeless


@pytest.fixture
def net(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    parts = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
    made = nn.Sequential(*parts, nn.Flatten(), nn.Linear(64, 10))
    # The last layer alone, by least squares: of a model that guesses nothing is told.
    batch = next(iter(open_data("digits").train.batches(1000)))
    with torch.no_grad():
        seen, wanted = made[:-1](batch.inputs[0]), nn.functional.one_hot(batch.target, 10).float()
        made[-1].weight.copy_(torch.linalg.lstsq(seen - seen.mean(0), wanted - wanted.mean(0)).solution.T)
        made[-1].bias.copy_(wanted.mean(0) - made[-1].weight @ seen.mean(0))
    torch.save(made, tmp_path / "net.pt")
    return tmp_path / "net.pt"


def tuned(net: Path, **more: Any) -> Tuning:
    return compress.tune(net, out=net.parent / "tune", **QUICK | more)


def test_a_search_leaves_runs_a_table_and_the_best(net: Path, monkeypatch: pytest.MonkeyPatch):
    calls = {"dense": 0}
    record = Harness.record

    def counted(self: Harness, artifact: Any, stage: str, *rest: Any) -> Any:
        calls["dense"] += stage == "dense" and self.known is None
        return record(self, artifact, stage, *rest)

    monkeypatch.setattr(Harness, "record", counted)
    found = tuned(net, trials=5, over=["method=obs", "target=0.3..0.8"], max_drop=50)
    assert calls["dense"] == 1
    out, by_number = net.parent / "tune", {one.trial: one for one in found.trials}
    assert len(found.trials) == 5 and all(one.lost is not None for one in found.trials)
    assert [one.settings["target"] for one in found.trials[:3]] == ["0.5", "0.35", "0.7"]  # what a user would have tried
    beaten = [any(_beats(other, one) for other in found.trials) for one in found.trials]
    assert [one.front for one in found.trials] == [not lost for lost in beaten]
    assert found.best is not None and by_number[found.best].front
    for number in by_number:
        report = json.loads((out / "trials" / f"{number:04d}" / "report.json").read_text())
        assert report["stages"][-1]["macs"] / report["stages"][0]["macs"] == by_number[number].left
    best = (out / "best" / "report.json").read_text()
    assert best == (out / "trials" / f"{found.best:04d}" / "report.json").read_text()
    assert {path.name for path in out.iterdir()} >= {"tune.md", "tune.json", "report.html", "best", "trials", "study.db"}
    assert json.loads((out / "tune.json").read_text())["best"] == found.best
    again = compress.tune(out=out, join=True)
    assert again.trials == found.trials and again.best == found.best


def _beats(other: Tried, one: Tried) -> bool:
    assert other.lost is not None and other.left is not None and one.lost is not None and one.left is not None
    return other.lost <= one.lost and other.left <= one.left and (other.lost, other.left) != (one.lost, one.left)


def test_what_cannot_be_joined_or_begun_is_refused(net: Path, tmp_path: Path):
    tuned(net, trials=1, over="target=0.5,0.4")
    with pytest.raises(BadInput, match=r"holds another search.*join=True to go on with it, force=True"):
        tuned(net, trials=1)
    with pytest.raises(BadInput, match="epochs is a setting of the study, which has it already"):
        tuned(net, join=True)
    torch.manual_seed(1)
    other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10))
    torch.save(other, tmp_path / "other.pt")
    with pytest.raises(BadInput, match="is of another model"):
        compress.tune(tmp_path / "other.pt", out=tmp_path / "tune", join=True)
    with pytest.raises(BadInput, match="holds no study to join"):
        compress.tune(net, out=tmp_path / "empty", join=True)
    with pytest.raises(BadInput, match="does not go with"):
        compress.tune(net, out=tmp_path / "t", tolerance=0.1, **QUICK)


def test_a_study_that_names_code_runs_it_only_for_who_trusts_it(net: Path):
    tuned(net, trials=1, over="target=0.5,0.4")
    out = net.parent / "tune"
    opened = study.joined(f"sqlite:///{out / 'study.db'}", "compress")
    opened.optuna.set_user_attr("recipe", opened.facts["recipe"].replace('data = "digits"', 'data = "os:system"'))
    with pytest.raises(BadInput, match=r"The study names code \(data = os:system\)"):
        compress.tune(out=out, join=True)


def test_a_contract_that_nothing_keeps_ends_with_what_was_closest(net: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Tried, "keeps", lambda *_: False)
    with pytest.raises(Infeasible, match=r"No trial keeps max_drop=0.5: trial \d comes closest"):
        tuned(net, trials=1, over="target=0.5,0.4", max_drop=0.5)
    assert not (net.parent / "tune" / "best").exists() and (net.parent / "tune" / "trials" / "0000" / "report.json").exists()
    # Without a contract the limit that goes without saying is said, and no trial is called best.
    found = front.found(study.joined(f"sqlite:///{net.parent / 'tune' / 'study.db'}", "compress"), "macs", "top1", None, ())
    assert found.best is None and "best" not in found.cells()[0][-1]
    assert found.notes[0].startswith("No trial keeps the 1 point that may be lost without a --max-drop: trial 0 comes closest")


def test_a_trial_that_cannot_be_carried_out_has_its_reason(net: Path):
    found = tuned(net, trials=2, over=["target=0.0001,0.5"])
    assert found.trials[0].lost is None and "0.0001" in found.trials[0].reason and found.trials[1].lost is not None
    assert found.cells()[-1][-1] == found.trials[0].reason


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[str]:
    """A server of its own on a free port, gone afterwards."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("PostgreSQL is not installed")
    folder, owner = tmp_path / "server", "postgres" if os.getuid() == 0 else None
    folder.mkdir()
    if owner is not None:
        shutil.chown(folder, owner)
        for parent in (tmp_path, *tmp_path.parents):
            if parent.owner() == "root" and parent != Path("/tmp"):
                parent.chmod(parent.stat().st_mode | 0o011)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def called(program: str, *options: str) -> None:
        command = [str(programs[-1] / program), "-D", str(folder / "data"), *options]
        subprocess.run(command, check=True, user=owner, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    called("initdb", "-A", "trust", "-U", "me")
    called("pg_ctl", "start", "-w", "-l", str(folder / "log"), "-o", f"-p {port} -k {folder}")
    try:
        yield f"postgresql+psycopg://me@127.0.0.1:{port}/postgres"
    finally:
        called("pg_ctl", "stop", "-m", "immediate")


@pytest.mark.slow
def test_three_workers_share_a_postgresql(postgresql: str):
    pytest.importorskip("psycopg")
    three_workers_one_killed(postgresql)


@pytest.mark.slow
def test_three_commands_share_a_search(net: Path):
    place, out = f"sqlite:///{net.parent / 's.db'}", net.parent
    how = [
        "--data",
        "digits",
        "--epochs",
        "0",
        "--rounds",
        "5",
        "--device",
        "cpu",
        "--minimize",
        "macs",
        "--depth",
        "0",
        "--allow-doubtful",
    ]
    line = [sys.executable, "-m", "compress", "tune", "--storage", place, "--quiet"]
    first = subprocess.Popen([*line, str(net), *how, "--trials", "6", "--over", "target=0.3..0.8", "--out", str(out / "a")])
    others = []
    while not others:
        time.sleep(0.5)
        if (out / "a" / "trials").exists():
            others = [subprocess.Popen([*line, "--join", "--out", str(out / name)]) for name in ("b", "c")]
    time.sleep(8)
    others[0].kill()
    others[0].wait()
    assert first.wait(300) == 0 and others[1].wait(300) == 0
    found = study.joined(place, "compress").trials
    assert sum(one.state.name == "COMPLETE" for one in found) == 6 and not [one for one in found if one.state.name == "RUNNING"]
    tables = [json.loads((out / name / "tune.json").read_text()) for name in ("a", "c")]
    assert [row["left"] for row in tables[0]["trials"]] == [row["left"] for row in tables[1]["trials"]]


def test_every_method_of_the_usual_search_sizes_channels():
    usual = space.space(BASE, set(), [])["method"]
    assert isinstance(usual, Choice) and all(METHODS[name].sizes for name in usual.values)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"trials": 0}, "trials=? ?i?s? ?0"),
        ({"join": True, "force": True}, "Leave one of them out"),
        ({"data": "nowhere"}, "nowhere"),
    ],
)
def test_a_search_that_is_refused_leaves_no_folder(tmp_path: Path, settings: dict[str, Any], said: str):
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    torch.save(net, tmp_path / "m.pt")
    with pytest.raises(BadInput, match=said):
        compress.tune(tmp_path / "m.pt", out=tmp_path / "search", **(QUICK | settings))
    assert not (tmp_path / "search").exists()
