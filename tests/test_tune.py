"""A search over recipes: each trial done once by whoever works, and the runs that no other one beats."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from runs import stopped_after
from sklearn.datasets import load_digits
from torch import nn

import compress
from compress.data import open_data
from compress.errors import BadInput, Infeasible, NotWritten
from compress.method_table import METHODS
from compress.pipeline.harness import Harness
from compress.pipeline.shared import NOT_TIMED
from compress.recipe import make
from compress.tuning import front, rounds, space, storage, study, trials
from compress.tuning.front import Tried, Tuning
from compress.tuning.space import Choice, Range

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

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
first = lambda every: next(((one, 0) for one in every if one.state.name == "WAITING"), None)
while (task := mine.next(first)) is not None:
    trial = task[0]
    with mine.beating(trial):
        x = trial.suggest_float("x", 0, 1)
        print(trial.number, flush=True)
        time.sleep(float(sys.argv[2]))
        mine.tell(trial, (x, 1 - x), {"values": {"x": str(x)}})
"""


def first(every: Sequence[FrozenTrial]) -> tuple[FrozenTrial, str] | None:
    return next(((one, "") for one in every if one.state.name == "WAITING"), None)


def taken(made: study.Study) -> Any:
    found = made.next(first)
    assert found is not None
    return found[0]


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


def drawn(of: Any) -> dict[str, str]:
    return {"x": f"{of.suggest_float('x', 0, 1):.6f}"}


def test_values_are_drawn_by_a_seed_and_what_is_known_and_stand_in_the_study(tmp_path: Path):
    found: list[list[dict[str, str]]] = []
    for name in ("a", "b"):
        made = study.made(f"sqlite:///{tmp_path}/{name}.db", "s", 12, [{"x": 0.25}], {})
        found.append([])
        while (task := made.next(first)) is not None:
            known = [one for one in made.trials if one.values and one.number < 10]
            found[-1].append(made.drawn(made.of(task[0]), drawn, 7 + task[0].number, lambda known=known: known))
            made.tell(task[0], (0.0, 1.0), {})
        assert [drawn["x"] for drawn in found[-1]] == [f"{one.params['x']:.6f}" for one in made.trials]
    assert found[0] == found[1] and found[0][0] == {"x": "0.250000"} and len({one["x"] for one in found[0]}) == 12


def test_an_interrupted_trial_goes_back_into_the_queue_as_often_as_it_takes(tmp_path: Path):
    made = study.made(f"sqlite:///{tmp_path}/s.db", "s", 1, [], {})
    for _ in range(5):
        trial = taken(made)
        with pytest.raises(KeyboardInterrupt), made.beating(trial):
            raise KeyboardInterrupt
    assert [one.state.name for one in made.trials] == ["FAIL"] * 5 + ["WAITING"]
    # However often, it is one trial, under its first number, and nobody is at it.
    (only,) = rounds.latest(made.trials)
    assert rounds.number(only) == 0 and only.user_attrs["worker"] == ""


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_trial_that_was_looked_at_waits_again_and_is_not_taken_by_who_has_not_heard_of_that(tmp_path: Path, kind: str):
    made = study.made(places(tmp_path, kind), "s", 1, [], {})
    slow = made.trials[0]
    made.put_back(taken(made), {"look": 1.0})
    assert made._taken(slow) is None
    (now,) = made.trials
    assert (now.state.name, now.user_attrs["look"], now.user_attrs["worker"]) == ("WAITING", 1.0, "")
    trial = taken(made)
    made.tell(trial, (0.0, 1.0), {})
    made.put_back(trial, {"look": 2.0})  # of one that was taken for dead, and whose trial another one has finished
    assert made.trials[0].state.name == "COMPLETE" and made.trials[0].user_attrs["look"] == 1.0


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("sqlite:////nowhere/at/all.db", "cannot be used"),
        ("nowhere/at/all.journal", "The folder of --storage nowhere/at/all.journal does not exist"),
        ("oracle-of-delphi://x", "is no address of a database"),
        ("grpc://server", "--storage is grpc://server; needed is grpc://HOST:PORT"),
        ("grpc://server:port", "needed is grpc://HOST:PORT"),
    ],
)
def test_a_storage_that_cannot_be_reached_is_refused(place: str, says: str):
    with pytest.raises(BadInput, match=says):
        study.made(place, "s", 1, [], {})


def test_a_database_that_answers_nothing_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("psycopg")
    monkeypatch.setattr(storage, "_CONNECT_S", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent, stopped_after(30):
        place = f"postgresql+psycopg://me:secret@127.0.0.1:{silent.getsockname()[1]}/db"
        with pytest.raises(BadInput, match="timeout") as refused:
            study.made(place, "s", 1, [], {})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("text", ["no journal", '{"a": 1}', "[]"])
def test_a_file_that_is_no_journal_is_refused_as_it_is(tmp_path: Path, text: str):
    (tmp_path / "notes.txt").write_text(f"{text}\n")
    with pytest.raises(BadInput, match="is a file that is no journal of Optuna"):
        study.made(str(tmp_path / "notes.txt"), "s", 1, [], {})
    assert (tmp_path / "notes.txt").read_text() == f"{text}\n"


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
def test_a_file_to_join_that_is_not_there_is_refused_and_not_made(tmp_path: Path, kind: str):
    with pytest.raises(BadInput, match=r"There is no --storage .* to join. Leave --join out"):
        study.joined(places(tmp_path, kind), "s")
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_goes_away_is_told(tmp_path: Path):
    made = study.made(f"sqlite:///{tmp_path}/s.db", "s", 2, [], {})
    taken(made)
    with __import__("sqlite3").connect(tmp_path / "s.db") as database:
        database.execute("DROP TABLE trials")
    with pytest.raises(NotWritten, match=r"does not answer any more .*--join when it is back"):
        made.next(first)


def test_no_password_is_shown():
    assert storage.shown("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert "secret" not in storage.shown("postgresql://me@host/db?password=secret&sslmode=require")
    for place in ("grpc://me:secret@host", "grpc://me:secret@host:1", "postgresql://me:secret@host:port/db"):
        with pytest.raises(BadInput, match=r"needed is|is no address of a database") as refused:
            storage.opened(place)
        assert "secret" not in str(refused.value)


def test_a_storage_that_cannot_be_used_is_told_before_anything_is_opened(tmp_path: Path):
    with pytest.raises(BadInput, match="is no address of a database"):
        compress.tune(tmp_path / "missing.pt", data="digits", storage="postgresql://me@host:port/db", out=tmp_path / "out")
    with pytest.raises(BadInput, match="needed is the path itself"):
        storage.opened(f"sqlite:///file:{tmp_path}/s.db?uri=true")


def test_a_second_study_of_a_name_and_one_that_is_not_there_are_refused(tmp_path: Path):
    place = f"sqlite:///{tmp_path}/s.db"
    with pytest.raises(BadInput, match="--trials is 0; needed are 1 to 10000"):
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
    assert space.read(space.written({name: values}), BASE) == {name: values}  # type: ignore[dict-item]


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


def looked_at(number: int) -> tuple[float, float]:
    """Three methods in turn at shares of their own; the second one always loses more than the first."""
    left = 0.9 - 0.8 * ((number * 7) % 30) / 30
    return (1 / left + (0.0, 3.0, 1.0)[number % 3], left)


def carried_out(trials: int, workers: int, seed: int, usual: int = 4, runs: int | None = None) -> tuple[list[int], list[int]]:
    """Looks and runs of workers that take turns by chance; one of three looks is of a trial that cannot be carried out."""
    plan = rounds.Rounds(trials, rounds.usual_runs(trials) if runs is None else runs, usual)
    state, facts = dict.fromkeys(range(trials), "WAITING"), {number: {} for number in range(trials)}
    busy: list[tuple[int, rounds.Does]] = []
    done: dict[rounds.Does, list[int]] = {does: [] for does in rounds.Does}
    draw = random.Random(seed)
    while True:
        every = [
            optuna.trial.FrozenTrial(
                n, optuna.trial.TrialState[state[n]], None, None, None, {}, {}, facts[n], {}, {}, n, values=None
            )
            if state[n] in ("WAITING", "RUNNING")
            else optuna.create_trial(state=optuna.trial.TrialState.FAIL, user_attrs=facts[n], system_attrs={"retry_history": [n]})
            for n in range(trials)
        ]
        task = plan.next(every) if len(busy) < workers else None
        if task is not None:
            busy.append((task[0].number, task[1]))
            state[task[0].number] = "RUNNING"
            continue
        if not busy:
            assert set(state.values()) == {"FAIL"} and sorted(done[rounds.Does.RUN] + done[rounds.Does.LEAVE])
            return sorted(done[rounds.Does.LOOK]), sorted(done[rounds.Does.RUN])
        number, does = busy.pop(draw.randrange(len(busy)))
        done[does].append(number)
        impossible = number % 11 == 10
        if does is rounds.Does.LOOK and not impossible:
            facts[number] = dict(zip((rounds.LOOK, rounds.LOOK_LEFT), looked_at(number), strict=True))
        state[number] = "WAITING" if does is rounds.Does.LOOK and not impossible else "FAIL"


def test_which_trials_are_carried_out_does_not_depend_on_workers_or_on_their_pace():
    alone = carried_out(30, 1, 0)
    assert alone[0] == list(range(30)) and len(alone[1]) == rounds.usual_runs(30) == 6
    assert all(carried_out(30, workers, seed) == alone for workers in (2, 3, 5) for seed in range(5))


def test_the_usual_are_carried_out_and_then_the_front_of_the_looks_far_from_each_other():
    _, runs = carried_out(30, 1, 0)
    assert runs[:4] == [0, 1, 2, 3]
    later, last = (rounds.front({number: looked_at(number) for number in range(end)}) for end in (20, 30))
    assert set(runs[4:]) <= set(later) | set(last) and len(runs) == 6
    assert min(looked_at(number)[1] for number in runs) == min(left for _, left in last.values())
    assert carried_out(5, 2, 0) == (list(range(5)), list(range(5)))  # few trials: all of them
    assert len(carried_out(25, 2, 0, usual=1, runs=3)[1]) == 3


def test_a_look_alone_stands_for_a_run_that_won_as_much_as_the_others():
    def trial(look: tuple[float, float], values: tuple[float, float] | None) -> Any:
        state = optuna.trial.TrialState.COMPLETE if values else optuna.trial.TrialState.WAITING
        facts = dict(zip((rounds.LOOK, rounds.LOOK_LEFT), look, strict=True))
        return optuna.create_trial(state=state, values=values, user_attrs=facts)

    known = trials._known([trial((4.0, 0.5), (2.0, 0.4)), trial((6.0, 0.25), None)])
    assert [one.values for one in known] == [[2.0, 0.4], [4.0, 0.2]]


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
        assert [stage["latency"] for stage in report["stages"]] == [None] * len(report["stages"])  # nothing is chosen by it
        assert NOT_TIMED in report["notes"]
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
    with pytest.raises(BadInput, match=r"epochs is a setting of the study, which has 0.0 and not 5.0"):
        tuned(net, join=True, epochs=5)
    tuned(net, join=True)  # the same command again, with --join: what it says of settings is what the study says
    torch.manual_seed(1)
    other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 10))
    torch.save(other, tmp_path / "other.pt")
    with pytest.raises(BadInput, match="is of another model"):
        compress.tune(tmp_path / "other.pt", out=tmp_path / "tune", join=True)
    with pytest.raises(BadInput, match="holds no study to join"):
        compress.tune(net, out=tmp_path / "empty", join=True)
    with pytest.raises(BadInput, match="does not go with"):
        compress.tune(net, out=tmp_path / "t", tolerance=0.1, **QUICK)


def test_other_data_of_as_many_samples_is_refused_and_the_same_at_another_path_goes_on(
    net: Path, tmp_path: Path, monkeypatch: Any
):
    digits = load_digits()
    x, y = (digits.images * 15).astype("uint8"), digits.target
    for name, images in (("here", x), ("there", x), ("inverted", 255 - x)):
        np.savez(tmp_path / f"{name}.npz", x=images, y=y)
    ran, real = list[bool](), trials.run

    def cut_off(recipe: Any, folder: Path, **how: Any) -> Any:
        ran.append(how["resume"])
        if len(ran) > 1:
            return real(recipe, folder, **how)
        real(recipe, folder, **how)
        (folder / "report.json").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(trials, "run", cut_off)
    how = {**QUICK, "arch": None, "data": str(tmp_path / "here.npz")}
    with pytest.raises(KeyboardInterrupt):
        compress.tune(net, out=tmp_path / "tune", trials=2, over="target=0.5,0.4", **how)
    with pytest.raises(BadInput, match=r"is of another data .*answers .*brightness"):
        compress.tune(net, out=tmp_path / "tune", join=True, data=str(tmp_path / "inverted.npz"))
    found = compress.tune(net, out=tmp_path / "tune", join=True, data=str(tmp_path / "there.npz"))
    assert ran[:2] == [False, True] and all(one.left is not None for one in found.trials)


def test_a_setting_is_searched_once(net: Path):
    with pytest.raises(BadInput, match="over target is there more than once"):
        tuned(net, trials=1, over=["target=0.5", "target=0.4"])


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


def test_what_was_looked_at_alone_has_no_run_and_no_figures_and_says_so(net: Path):
    found = tuned(net, trials=3, runs=1, over=["method=obs", "target=0.3..0.8"], max_drop=50)
    assert [one.lost is None for one in found.trials] == [False, True, True]
    assert found.trials[1].reason.startswith("Looked at alone: without training it loses")
    assert any(note.startswith("All 3 trials were looked at, without training, and 1 carried out") for note in found.notes)
    assert [path.name for path in (net.parent / "tune" / "trials").iterdir()] == ["0000"] and found.best == 0


def test_a_limit_that_is_finer_than_the_held_out_images_is_said():
    one = Tried(7, {}, lost=0.85, lost_ci95=(-0.85, 2.55), left=0.5)
    said = front.none_keeps([one], None, samples=117)
    assert "trial 7 comes closest, with 0.85 [-0.85, 2.55] points lost" in said
    assert said.endswith("of 117 held-out images one is 0.85 points, so that they cannot tell 1 from more. "
                         "Give more images, or --max-drop 1.7.")  # fmt: skip
    assert "images one" not in front.none_keeps([Tried(7, {}, lost=3.0, lost_ci95=(2.0, 4.0), left=0.5)], 0.5, samples=117)


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


SERVER = """
import sys
from optuna.storages import JournalStorage, run_grpc_proxy_server
from optuna.storages.journal import JournalFileBackend
run_grpc_proxy_server(JournalStorage(JournalFileBackend(sys.argv[1])), host="127.0.0.1", port=int(sys.argv[2]))
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_three_workers_share_a_proxy_and_are_told_when_it_goes_away(tmp_path: Path):
    pytest.importorskip("grpc")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = f"grpc://127.0.0.1:{port}"
    with pytest.raises(BadInput, match=r"cannot be used \(failed to connect .*\)"):
        study.made("grpc://127.0.0.1:1", "s", 1, [], {})
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(tmp_path / "s.journal"), str(port)])
    try:
        for _ in range(60):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.5)
        three_workers_one_killed(place)
        made = study.made(place, "t", 1, [], {})
    finally:
        server.kill()
        server.wait()
    with pytest.raises(NotWritten, match=r"does not answer any more .*--join when it is back"):
        made.next(first)


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
        ({"trials": 3, "runs": 4}, "no more than the 3 of"),
        ({"join": True, "force": True}, "Leave one of them out"),
        ({"data": "nowhere"}, "nowhere"),
        ({"storage": "grpc://nowhere"}, "grpc://HOST:PORT"),
        ({"storage": "sqlite:////nowhere/at/all.db"}, "cannot be used"),
    ],
)
def test_a_search_that_is_refused_leaves_no_folder(tmp_path: Path, settings: dict[str, Any], said: str):
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    torch.save(net, tmp_path / "m.pt")
    with pytest.raises(BadInput, match=said):
        compress.tune(tmp_path / "m.pt", out=tmp_path / "search", **(QUICK | settings))
    assert not (tmp_path / "search").exists()
