"""A study that a stranger made, or worked on: `compress tune --join` refuses it in a sentence, and runs and calls nothing."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import compress
from compress.errors import BadInput
from compress.recipe import make
from compress.tuning import believed, database, space, study
from compress.tuning.space import Choice, Range
from tests.runs import invoke, stopped_after

optuna = pytest.importorskip("optuna")

RECIPE = 'model = "net.pt"\ndata = "digits"\nepochs = 0\nrounds = 5\nminimize = "macs"\ndepth = 0\nallow_doubtful = true\n'
GOOD: dict[str, Any] = {
    "model": "x",
    "data": "y",
    "processor": "z",
    "recipe": RECIPE,
    "space": '{"target": ["0.5", "0.6"]}',
    "compress": "0",
    "trials": 1,
    "runs": 1,
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with code, and an ssh that leaves a trace; what hangs is stopped."""
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text("import pathlib\npathlib.Path('it-ran').touch()\ndef loss(*_):\n    raise SystemExit\n")
    Path("bin").mkdir()
    Path("bin/ssh").write_text(f"#!/bin/sh\ntouch {tmp_path}/it-ran\nexit 255\n")
    Path("bin/ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with stopped_after(90):
        yield tmp_path
    assert not Path("it-ran").exists()


def hostile(facts: dict[str, Any], kind: str = "sqlite", attrs: dict[str, Any] | None = None, **system: Any) -> str:
    """A study in the folder `tune`, and its address."""
    Path("tune").mkdir()
    place = "sqlite:///tune/study.db" if kind == "sqlite" else "tune/study.journal"
    backend = optuna.storages.journal.JournalFileBackend
    storage: Any = place if kind == "sqlite" else optuna.storages.JournalStorage(backend(place))
    made = optuna.create_study(storage=storage, study_name="compress", directions=["minimize", "minimize"])
    for name, value in facts.items():
        made.set_user_attr(name, value)
    waiting = optuna.trial.TrialState.WAITING
    made.add_trial(optuna.create_trial(state=waiting, user_attrs=attrs or {}, system_attrs={"fixed_params": {}} | system))
    return place


FACTS: list[dict[str, Any]] = [
    {"recipe": None},
    {"recipe": 5},
    {"recipe": "[[["},
    {"recipe": "a = " + "[" * 50_000},
    {"recipe": RECIPE + 'loss = "evil.py:loss"\n'},
    {"recipe": RECIPE + 'on = "ssh://u@evil"\n'},
    {"recipe": RECIPE + 'on_python = "touch it-ran"\n'},
    {"recipe": RECIPE + "unknown = 1\n"},
    {"recipe": RECIPE + "batch = 'x'\n"},
    {"space": None},
    {"space": 1},
    {"space": "["},
    {"space": "[" * 100_000},
    {"space": "[]"},
    {"space": "{}"},
    {"space": '{"target": []}'},
    {"space": '{"target": [0.5]}'},
    {"space": '{"target": ["nonsense"]}'},
    {"space": '{"method": {"q": 1}}'},
    {"space": '{"method": {"low": 0, "high": 1}}'},
    {"space": '{"lr": {"low": 1, "high": 0.1}}'},
    {"space": '{"lr": {"low": 0.1, "high": Infinity}}'},
    {"space": '{"batch_size": {"low": 1, "high": 2, "whole": false}}'},
    {"space": '{"target": ["params=0.5"], "loss": ["evil.py:loss"]}'},
    {"space": '{"target": ["params=0.5"], "on": ["ssh://u@evil"]}'},
    {"space": '{"target": ["params=0.5"], "on_python": ["touch it-ran"]}'},
    {"space": '{"target": ["params=0.5"], "arch": ["evil.py:loss"]}'},
    {"trials": 10**9},
    {"trials": 0},
    {"trials": "x"},
    {"trials": 1.5},
    {"runs": 10**9},
    {"runs": None},
    {"model": 1},
    {"data": ["x"]},
]


@pytest.mark.parametrize("kind", ["sqlite", "journal"])
@pytest.mark.parametrize("changed", FACTS, ids=lambda one: str(one)[:60])
def test_a_study_that_no_search_made_is_refused_unopened(changed: dict[str, Any], kind: str):
    facts = {name: value for name, value in (GOOD | changed).items() if value is not None}
    place = hostile(facts, kind)
    result = invoke("tune", "--join", "--out", "tune", *(() if kind == "sqlite" else ("--storage", place)))
    assert result.exit_code == 2 and "Internal" not in result.stderr, result.stderr
    assert result.stderr.count("study") >= 1 and not Path("tune/trials").exists()


def test_a_device_that_is_typed_may_stand_in_the_study(monkeypatch: pytest.MonkeyPatch):
    """And goes on to what is wrong next: the model of it is not there."""
    hostile(GOOD | {"recipe": RECIPE + 'on = "ssh://u@device"\n'})
    with pytest.raises(BadInput, match="There is no model file"):
        compress.tune(out="tune", join=True, on="ssh://u@device")


ATTRS: list[dict[str, Any]] = [
    {"look": "x", "look_left": None},
    {"look": 1.0, "look_left": 0.5},
    {"look": 1.0, "look_left": -1, "values": {}},
    {"look": float("nan"), "look_left": 0.5, "values": {"target": "0.5"}},
    {"look_left": 0.5, "values": {"target": "0.5"}},
    {"values": []},
    {"values": {"target": 0.5}},
    {"values": {"target": ["0.5"]}},
    {"worker": 5},
    {"folder": 5},
    {"lost": {"points": 1}},
    {"lost": []},
    {"test_ci95": [1]},
    {"macs": "many"},
    {"seconds": -1},
]


@pytest.mark.parametrize("attrs", ATTRS, ids=str)
def test_a_trial_with_entries_that_no_worker_writes_is_refused(attrs: dict[str, Any]):
    opened = study.joined(hostile(GOOD, attrs=attrs), "compress")
    for read in (lambda: opened.trials, lambda: opened.next(lambda _: None)):
        with pytest.raises(BadInput, match=r"Trial 0 of the study in sqlite:///tune/study.db is not as a search writes it"):
            read()


@pytest.mark.parametrize(
    "system", [{"retry_history": []}, {"retry_history": ["x"]}, {"retry_history": [10**9]}, {"fixed_params": {"target": [1]}}]
)
def test_a_trial_with_a_history_that_optuna_does_not_write_is_refused(system: dict[str, Any]):
    with pytest.raises(BadInput, match="Trial 0 of the study"):
        study.joined(hostile(GOOD, **system), "compress").trials  # noqa: B018


@pytest.mark.parametrize(
    "values",
    [{"loss": "evil.py:loss"}, {"target": "0.7"}, {"target": "evil"}, {"lr": "1"}, {"lr": "nan"}, {"on": "ssh://u@evil"}],
)
def test_a_trial_tries_nothing_but_what_is_searched(values: dict[str, str]):
    searched = {"target": Choice(("0.5", "0.6")), "lr": Range(0.001, 0.1)}
    space.require_inside(searched, {"target": "0.5", "lr": "0.1"})
    with pytest.raises(BadInput, match="is not among what it searches"):
        space.require_inside(searched, values)


def net() -> None:
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)), "net.pt")


@pytest.mark.parametrize("looked", [{}, {"look": 1.0, "look_left": 0.5}])
def test_a_trial_that_names_code_is_told_as_failed_and_runs_none(looked: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    net()
    same = {"model": "x", "data": "y", "processor": "z"}
    monkeypatch.setattr("compress.commands.tune._what", lambda _: same)
    hostile(GOOD | same, attrs={"values": {"loss": "evil.py:loss"}, **looked})
    result = invoke("tune", "--join", "--out", "tune")
    assert result.exit_code == 3 and "not among what it searches" in result.stderr, result.stderr


@pytest.mark.parametrize("fixed", [{"target": "evil"}, {"loss": "evil.py:loss"}])
def test_a_value_that_is_set_from_outside_is_one_of_those_that_are_searched(
    fixed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    net()
    same = {"model": "x", "data": "y", "processor": "z"}
    monkeypatch.setattr("compress.commands.tune._what", lambda _: same)
    hostile(GOOD | same, fixed_params=fixed)
    result = invoke("tune", "--join", "--out", "tune")
    assert result.exit_code in (0, 2, 3) and "Internal" not in result.stderr, result.stderr


def test_a_study_names_no_folder_but_one_of_a_trial(tmp_path: Path):
    (tmp_path / "trials/0003").mkdir(parents=True)
    (tmp_path / "else/trials").mkdir(parents=True)
    (tmp_path / "else/trials/0003").symlink_to(tmp_path / "trials/0003")
    assert believed.folder_of(str(tmp_path / "trials/0003"), 3) == tmp_path / "trials/0003"
    for named in (tmp_path, tmp_path / "trials/0004", tmp_path / "else/trials/0003", "trials/0003", "", tmp_path / "trials"):
        assert believed.folder_of(str(named), 3) is None


# ---- the files -------------------------------------------------------------------------------------------------------------

ENDLESS = (
    "WITH RECURSIVE t(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t) SELECT st.study_id, st.study_name FROM st, t WHERE t.n < 0"
)


@pytest.mark.parametrize(
    "sql",
    [
        ["ALTER TABLE studies RENAME TO st", f"CREATE VIEW studies AS {ENDLESS}"],
        ["CREATE TRIGGER t AFTER INSERT ON trials BEGIN DELETE FROM studies; END"],
        ["CREATE TABLE a (b INTEGER, c TEXT GENERATED ALWAYS AS (hex(zeroblob(500000000))))"],
        ["CREATE TABLE a (b TEXT CHECK (length(hex(zeroblob(500000000))) > 1))"],
        ['CREATE TABLE a (b TEXT CHECK ("hex"("zeroblob"(500000000)) > 1))'],
        ["CREATE TABLE a (b TEXT DEFAULT (hex(zeroblob(500000000))))"],
        ["CREATE INDEX a ON studies (hex(study_name))"],
        ["CREATE INDEX a ON studies (study_name) WHERE study_name LIKE '%a%a%a%'"],
        ["DROP TABLE trials"],
        ["UPDATE study_user_attributes SET value_json = hex(zeroblob(2000000))"],
    ],
)
def test_a_database_that_computes_what_it_holds_is_refused_before_it_is_opened(sql: list[str], monkeypatch: pytest.MonkeyPatch):
    hostile(GOOD)
    with closing(sqlite3.connect("tune/study.db")) as opened:
        for line in sql:
            opened.execute(line)
        opened.commit()
    monkeypatch.setattr(optuna.storages, "RDBStorage", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(BadInput, match=r"study\.db holds (the \w+ '\w+', which computes|a value of|no study of Optuna)"):
        study.joined("sqlite:///tune/study.db", "compress")


@pytest.mark.parametrize("table", ["trial_intermediate_values", "more"])
def test_a_database_of_millions_of_rows_is_refused(table: str):
    hostile(GOOD)
    with closing(sqlite3.connect("tune/study.db")) as opened:
        opened.execute("CREATE TABLE IF NOT EXISTS more (a INTEGER)")
        columns = "(a)" if table == "more" else "(step, trial_id, intermediate_value_type)"
        values = "i" if table == "more" else "i, 1, 'FINITE'"
        numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1000001)"
        opened.execute(f"{numbers} INSERT INTO {table} {columns} SELECT {values} FROM n")
        opened.commit()
    with pytest.raises(BadInput, match=f"more than 1000000 rows of {table}"):
        study.joined("sqlite:///tune/study.db", "compress")


def test_a_study_of_optuna_alone_is_plain():
    hostile(GOOD)
    database.require_plain(Path("tune/study.db"), new=False)
    Path("new.db").touch()
    database.require_plain(Path("new.db"), new=True)
    with pytest.raises(BadInput, match=r"new\.db holds no study"):
        database.require_plain(Path("new.db"), new=False)


def hot_journal(database: Path, names: Path) -> None:
    """A journal as a killed writer leaves it, which says that it is one of several that the file `names` lists."""
    head = database.read_bytes()[:100]
    page = int.from_bytes(head[16:18], "big")
    magic, text = bytes.fromhex("d9d505f920a163d7"), str(names).encode()
    numbers = (0, 1, database.stat().st_size // page, 512, page)
    content = (magic + b"".join(n.to_bytes(4, "big") for n in numbers)).ljust(512, b"\0")
    content += (0x40000000 // page + 1).to_bytes(4, "big") + text + len(text).to_bytes(4, "big")
    Path(f"{database}-journal").write_bytes(content + (sum(text) & 0xFFFFFFFF).to_bytes(4, "big") + magic)


@pytest.mark.parametrize("what", ["super-journal", "-journal", "-wal", "-shm", ""])
@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_files_beside_a_database_lead_nowhere_else(tmp_path: Path, what: str, link: Any):
    place = hostile({})
    database_path, victim = Path(place.removeprefix("sqlite:///")), tmp_path / "victim"
    victim.write_bytes(b"precious" * 1500)
    if what == "super-journal":
        hot_journal(database_path, victim)
    elif what:
        link(victim, f"{database_path}{what}")
    else:
        database_path.rename(tmp_path / "other.db")
        link(tmp_path / "other.db", database_path)
    with pytest.raises(BadInput, match="several databases at once" if what == "super-journal" else "files of its own"):
        study.joined(place, "study")
    assert victim.read_bytes() == b"precious" * 1500


@pytest.mark.parametrize("name", ["study.db", "study.journal"])
@pytest.mark.parametrize("what", ["pipe", "device", "folder", "large", "text"])
def test_what_is_no_file_of_a_study_is_refused(name: str, what: str):
    path = Path(name)
    match what:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "large":
            with path.open("wb") as file:
                file.truncate(5 << 30)
        case _:
            path.write_text("[" * 5000 + "\n")
    place = f"sqlite:///{name}" if name.endswith("db") else name
    with pytest.raises(BadInput, match=name):
        study.joined(place, "compress")


@pytest.mark.parametrize(
    "line",
    [
        '{"op_code": 99, "worker_id": "x"}',
        '{"op_code": 2, "worker_id": "x", "study_id": 0}',
        '{"op_code": 4, "worker_id": "x", "study_id": 0, "state": 99, "distributions": {"a": "{"}, "params": {"a": 1}}',
        '{"op_code": "x"}',
        '{"op_code": 4, "a": ' + "[" * 5000,
        "[]",
        "",
    ],
)
def test_a_journal_with_an_operation_that_optuna_does_not_write_is_refused(line: str):
    place = hostile(GOOD, "journal")
    with Path(place).open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(BadInput, match=r"no journal of Optuna \(line \d+\)|cannot be read"):
        study.joined(place, "compress").trials  # noqa: B018


@pytest.mark.parametrize("directions", [["minimize"], ["maximize", "minimize"]])
def test_a_study_of_something_else_is_refused(directions: list[str]):
    optuna.create_study(storage="sqlite:///s.db", study_name="compress", directions=directions)
    with pytest.raises(BadInput, match="is not of 'compress tune'"):
        study.joined("sqlite:///s.db", "compress")


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE trials SET state = 'NONSENSE'",
        "UPDATE trials SET number = 'x'",
        "UPDATE study_user_attributes SET value_json = '['",
        "UPDATE trial_system_attributes SET value_json = '['",
        "UPDATE study_directions SET direction = 'SIDEWAYS'",
    ],
)
def test_rows_that_optuna_does_not_write_are_refused(sql: str):
    hostile(GOOD)
    with closing(sqlite3.connect("tune/study.db")) as opened:
        opened.execute(sql)
        opened.commit()
    with pytest.raises(BadInput):
        opened_study = study.joined("sqlite:///tune/study.db", "compress")
        believed.facts(opened_study.facts, opened_study.place)
        opened_study.trials  # noqa: B018


def test_what_a_search_writes_down_is_read_again():
    searched = {"target": Choice(("0.5", "0.6")), "lr": Range(0.001, 0.1), "batch_size": Range(32, 64, whole=True)}
    base = make(model="a", data="b", epochs=1)
    assert space.read(space.written(searched), base) == searched
    assert believed.facts(json.loads(json.dumps(GOOD)), "here").trials == 1
