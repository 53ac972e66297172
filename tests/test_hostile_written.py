"""What a run or the cache wrote down and reads again, after a stranger has written it: a sentence, and nothing runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import compress
from compress.artifact import Artifact
from compress.checkpoint.load.hugging_face import _read as config_of
from compress.commands.run_files import settings
from compress.detection.coco import open_coco
from compress.edits import Plan
from compress.errors import BadInput
from compress.graph.trace.trace import trace
from compress.measure.latency import Timing
from compress.measure.layer_times import LayerTimes
from compress.pipeline import remembered, search_file, stage_file
from compress.pipeline.latency_cache import LatencyCache
from compress.recipe import make, settings_in
from compress.report import sealed
from compress.report.html.run_folder import opened as read_run
from compress.report.records import Quality, StageRecord
from compress.search import episodes
from compress.stages import lottery
from compress.user import files
from tests.attacks.names import small
from tests.runs import edited, invoke, made_run, stopped_after

DEEP = "[" * 100_000


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder with code in it; who waits for a pipe, or reads without an end, is stopped."""
    monkeypatch.chdir(tmp_path)
    Path("evil.py").write_text("import pathlib\npathlib.Path('it-ran').touch()\ndef loss(*_):\n    raise SystemExit\n")
    with stopped_after(60):
        yield tmp_path


def no_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


def no_end(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/dev/zero")


def deep(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"a = {DEEP}" if path.suffix == ".toml" else DEEP)


def large(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(5 << 30)


MADE = pytest.mark.parametrize("make_it", [no_file, no_end, deep, large])
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a stage": ("stage.json", lambda path: stage_file.read(path.parent, "dense")),
    "a search for a time": ("search.json", lambda path: search_file.read(search_file.Aimed, path.parent, "latency")),
    "a search for a contract": ("search.json", lambda path: search_file.read(search_file.Kept, path.parent, "macs")),
    "episodes": ("episodes.jsonl", lambda path: episodes.recorded(path.parent)),
    "boxes": ("annotations.json", lambda path: open_coco(path.parent)),
    "a recipe": ("recipe.toml", settings_in),
    "a config": ("config.json", config_of),
}


@MADE
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_or_has_no_end_is_refused(make_it: Callable[[Path], None], reader: str):
    name, read = READERS[reader]
    make_it(Path("there") / name)
    with pytest.raises(BadInput, match=rf"(?s)there(/{name})? (cannot be read|is no JSON|is no config)"):
        read(Path("there") / name)


@MADE
def test_a_cache_that_is_no_file_is_not_used(make_it: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COMPRESS_CACHE", "cache")
    make_it(Path("cache/latency.json"))
    assert remembered.recalled("latency.json", Timing) == {}


@MADE
def test_what_lies_beside_a_report_and_cannot_be_read_is_left_out(make_it: Callable[[Path], None]):
    make_it(Path("run/recipe.toml"))
    assert settings(Path("run/report.json")) == {}
    make_it(Path("run/analysis.json"))
    found = read_run(Path("run"))
    assert found.analysis == () and any("analysis.json cannot be read" in said for said in found.broken)


def test_tables_in_tables_without_brackets_are_too_deep():
    with pytest.raises(ValueError, match="more than 64 deep"):
        files.parsed_toml(".".join("a" * 5000) + " = 1")
    with pytest.raises(ValueError, match="more than 4000000 lists"):
        files.parsed_json("[" + "[]," * 4_000_000 + "1]")
    assert files.parsed_json(b'{"a": [[1]]}') == {"a": [[1]]} and files.parsed_toml("a.b = [1]") == {"a": {"b": [1]}}


# ---- search.json -----------------------------------------------------------------------------------------------------------

TIMES = {"kinds": {"linear 1": [0, 0.1, 0, 0]}, "rest": [0.1, 0], "multiple": 8}
AIMED: dict[str, Any] = {
    "unit": "latency",
    "target": "macs=0.5000",
    "align": None,
    "note": "",
    "looks": [],
    "time": {"times": TIMES, "ms": 1.5, "batch": 1},
    "settings": {"depth": 0.0},
}
KEPT: dict[str, Any] = {
    "unit": "macs",
    "looks": [{"target": 0.5, "lost": 1.0, "low": 0.5, "high": 1.5, "trained": False, "kept": True}],
}


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": {"loss": "evil.py:loss"}},
        {"settings": {"metric": "evil.py:loss"}},
        {"settings": {"on": "ssh://u@evil"}},
        {"settings": {"order": "auto"}},
        {"settings": {"depth": 3}},
        {"settings": {"depth": False}},
        {"settings": []},
        {"target": "params=0.5"},
        {"target": "macs=0.5000\n"},
        {"target": 0.5},
        {"align": 10**9},
        {"align": "8"},
        {"unit": "memory"},
        {"loss": "evil.py:loss"},
        {"looks": {}},
        {"time": {"times": TIMES, "ms": float("inf"), "batch": 1}},
        {"time": {"times": TIMES, "ms": 1.0, "batch": 10**30}},
        {"time": {"times": TIMES | {"rest": [-1, 0]}, "ms": 1.0, "batch": 1}},
        {"time": {"times": TIMES | {"kinds": {"a": [1, 2]}}, "ms": 1.0, "batch": 1}},
    ],
)
def test_only_what_a_search_decides_is_taken_from_it(changed: dict[str, Any]):
    Path("search.json").write_text(json.dumps(AIMED | changed))
    with pytest.raises(BadInput, match=r"search\.json (cannot be read|is of a search in).* Start again with --force"):
        search_file.read(search_file.Aimed, Path(), "latency")


@pytest.mark.parametrize(
    "changed",
    [
        {"unit": "params"},
        {"unit": "latency"},
        {"looks": []},
        {"looks": [{}]},
        {"looks": KEPT["looks"] * 2000},
        *({"looks": [KEPT["looks"][0] | one]} for one in ({"target": 0}, {"lost": float("nan")}, {"kept": "yes"}, {"x": 1})),
    ],
)
def test_only_targets_that_were_tried_are_taken_from_a_search_for_a_contract(changed: dict[str, Any]):
    Path("search.json").write_text(json.dumps(KEPT | changed))
    with pytest.raises(BadInput, match=r"search\.json .*Start again with --force"):
        search_file.read(search_file.Kept, Path(), "macs")


def test_what_a_search_writes_is_read_again():
    Path("search.json").write_text(json.dumps(AIMED))
    found = search_file.read(search_file.Aimed, Path(), "latency")
    assert found and found.settings.given() == {"depth": 0.0} and found.time and found.time.times.rest == (0.1, 0)
    Path("search.json").write_text(json.dumps(KEPT))
    assert search_file.read(search_file.Kept, Path(), "macs")
    Path("search.json").unlink()
    assert search_file.read(search_file.Kept, Path(), "macs") is None


def test_a_run_that_goes_on_runs_nothing_that_its_search_names():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)).eval()
    torch.save(net, "net.pt")
    told = {"data": "digits", "target": "memory=0.9", "epochs": 0.1, "rounds": 5, "export": "", "device": "cpu"}
    told |= {"method": "magnitude", "depth": 0, "allow_doubtful": True}
    compress.run("net.pt", out="out", **told)
    known = json.loads(Path("out/search.json").read_text())
    Path("out/search.json").write_text(json.dumps(known | {"settings": {"loss": "evil.py:loss"}}))
    Path("out/report.json").unlink()
    with pytest.raises(BadInput, match=r"search.json cannot be read \(settings.loss"):
        compress.run("net.pt", out="out", resume=True, **told)
    assert not Path("it-ran").exists()


# ---- stages ----------------------------------------------------------------------------------------------------------------

RECORD = {"stage": "dense", "params": 1, "macs": 1, "file_bytes": 1, "peak_memory_bytes": 1, "seconds": 0.1}
FACTS: dict[str, Any] = {
    "same": True,
    "record": RECORD,
    "exactness": None,
    "plan": Plan().to_json(),
    "notes": [],
    "warnings": [],
    "curves": [],
    "observed": {},
}


@pytest.mark.parametrize(
    "changed",
    [
        *({name: wrong} for name in FACTS for wrong in ([{"x": 1}], "nonsense", 10**400) if name != "same"),
        {"same": [1]},
        {"plan": DEEP},
        {"record": RECORD | {"stage": "remove"}},
        {"record": RECORD | {"seconds": float("inf")}},
        {
            "record": RECORD
            | {"latency": {"runtime": "ort", "batch": 1, "threads": 1, "p50_ms": 1e-320, "ratio": 1, "ci95": [1, 1]}}
        },
        {"exactness": {"worst_abs": float("nan"), "tolerance": 1, "samples": 1}},
        {"observed": {"activations": [{"activation": "a", "channels": 1, "entropy": 1e999, "always_on": 0, "always_off": 0}]}},
    ],
)
def test_a_stage_that_nothing_wrote_so_is_refused(changed: dict[str, Any]):
    Path("stage.json").write_text(json.dumps(FACTS | changed))
    with pytest.raises(BadInput, match=r"cannot be read \(.*\)\. Start again with --force"):
        stage_file.read(Path(), "dense")


def test_a_stage_that_is_measured_otherwise_than_the_first_is_of_another_run():
    Path("stage.json").write_text(json.dumps(FACTS))
    quality = Quality(metric="top1", value=0.5, samples=10)
    first = StageRecord.model_validate(RECORD)
    assert stage_file.read(Path(), "dense", first)
    with pytest.raises(BadInput, match="quality is told in None, that of the first stage in top1"):
        stage_file.read(Path(), "dense", first.model_copy(update={"quality": quality}))


def test_a_stage_without_an_entry_is_refused_and_a_whole_one_is_read():
    for name in ("same", "record", "exactness", "plan", "notes", "curves"):
        Path("stage.json").write_text(json.dumps({key: value for key, value in FACTS.items() if key != name}))
        with pytest.raises(BadInput, match=name):
            stage_file.read(Path(), "dense")
    Path("stage.json").write_text(sealed.text(FACTS))
    found = stage_file.read(Path(), "dense")
    assert found and found.edits == Plan() and found.record.macs == 1


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[]",
        '{"shares": [0.5], "reward": "x", "quality": 1}',
        '{"shares": [0.5], "reward": NaN, "quality": 1}',
        '{"shares": [0.5], "reward": 1e300, "quality": 1}',
        '{"shares": [1.5], "reward": 1, "quality": 1}',
        '{"shares": [0.5, 0.5], "reward": 1, "quality": 1}',
        '{"shares": [0.5], "reward": 1, "quality": 1, "more": 1}',
        '{"shares": [0.5], "reward"',
    ],
)
def test_an_episode_that_no_search_tried_is_refused(line: str):
    good = '{"shares": [0.5], "reward": 1, "quality": 1, "entropy": null, "constant": null}'
    Path("episodes.jsonl").write_text(good)
    assert episodes.recorded(Path(), 1) == [episodes.Episode((0.5,), 1, 1)]
    Path("episodes.jsonl").write_text(f"{good}\n{line}")
    with pytest.raises(BadInput, match=r"episodes\.jsonl (cannot be read|is not as|is of another).*Start again with --force"):
        episodes.recorded(Path(), 1)


class Evil:
    def __reduce__(self):
        return Path.touch, (Path("it-ran"),)


@pytest.mark.parametrize(
    "saved",
    [
        Evil(),
        {"trained": {}, "rewound": {}},
        {"trained": Evil()},
        [1],
        {"trained": 1, "rewound": 2},
        {"trained": nn.Linear(3, 3).state_dict(), "rewound": {}},
    ],
)
def test_a_training_that_is_gone_on_with_is_weights_and_nothing_else(saved: object):
    torch.save(saved, "first.pt")
    x = torch.zeros(1, 3, 8, 8)
    with pytest.raises(BadInput, match=r"first\.pt"):
        lottery._again(Path("first.pt"), Artifact(trace(small(), (x,)), (x,)))
    assert not Path("it-ran").exists()


# ---- the cache -------------------------------------------------------------------------------------------------------------

TIMING = {
    "p50_ms": 1.0, "ratio": 2.0, "ci95": [1.9, 2.1], "samples": 40, "p50_ci95_ms": None, "scatter": 1.0, "rounds_ms": [],
    "calm": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(
    "changed",
    [
        {"p50_ms": "x"},
        {"ratio": float("inf")},
        {"ratio": 0},
        {"ratio": -1},
        {"ratio": 1e300},
        {"ci95": [1]},
        {"ci95": {"a": 1}},
        {"ci95": [0, 1]},
        {"p50_ci95_ms": [float("nan"), 1]},
        {"samples": 1.5},
        {"scatter": 1e8},
        {"rounds_ms": 3},
    ],
)
def test_a_time_that_nobody_measured_is_measured_again(changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COMPRESS_CACHE", "cache")
    Path("cache").mkdir()
    one: Any = None
    races = LatencyCache(make(model="a", data="b"), torch.device("cpu"))
    monkeypatch.setattr(LatencyCache, "key", lambda *_: "key")
    monkeypatch.setattr(LatencyCache, "_measure", lambda *_: Timing(3.0, 1.5, (1.4, 1.6), 40))
    Path("cache/latency.json").write_text(json.dumps({"key": TIMING | changed, "odd": 1}))
    assert races.race(one, one) == Timing(3.0, 1.5, (1.4, 1.6), 40) and races.measured == 1
    Path("cache/latency.json").write_text(json.dumps({"key": TIMING}))
    again = LatencyCache(races.recipe, races.device)
    assert again.race(one, one) == Timing(1.0, 2.0, (1.9, 2.1), 40) and again.measured == 0


def test_times_of_layers_that_nobody_measured_are_not_used():
    good = {"kinds": {"linear 1": [0, 0.1, 0, 0]}, "rest": [0.1, 0], "multiple": 8}
    assert remembered.made(LayerTimes, good) == LayerTimes({"linear 1": (0, 0.1, 0, 0)}, (0.1, 0), 8)
    wrong: list[dict[str, Any]] = [{"rest": "x"}, {"rest": [1]}, {"kinds": {"a": [1, 2, 3]}}, {"kinds": [1]}, {"multiple": None}]
    for changed in (*wrong, {"rest": [float("inf"), 0]}, {"kinds": {"a": [-1, 0, 0, 0]}}):
        assert remembered.made(LayerTimes, good | changed) is None


@pytest.mark.parametrize("command", ["diff", "compare"])
def test_a_recipe_that_is_too_deep_ends_no_comparison(command: str):
    for name in ("a", "b"):
        made_run(Path(name))
        deep(Path(name) / "recipe.toml")
    result = invoke(command, "a", "b")
    assert result.exit_code in (0, 2) and "Internal" not in result.stderr, result.stderr


@pytest.mark.parametrize(
    "wrong", [{"ci95": [0, 1]}, {"ci95": [-1, 1]}, {"ci95": [1e-320, 1]}, {"ratio": 1e-320}, {"p50_ms": 1e300}]
)
@pytest.mark.parametrize("command", ["diff", "gate", "compare", "report"])
def test_a_report_of_times_that_nobody_measured_is_told(command: str, wrong: dict[str, object], tmp_path: Path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        made_run(tmp_path / name)
    place = tmp_path / "new" / "report.json"
    found = json.loads(edited(place.read_text()))
    found["stages"][0]["latency"] |= wrong
    place.write_text(json.dumps(found))
    words = {"gate": [place, "--max-drop", 1], "report": [place, "--out", tmp_path / "a.html"]}
    done = invoke(command, *words.get(command, [tmp_path / "old", tmp_path / "new"]))
    assert done.exit_code == 2 and "report.json" in done.stderr and next(iter(wrong)) in done.stderr


@pytest.mark.parametrize("command", ["gate", "compare", "report"])
def test_a_chance_that_is_no_share_is_told(command: str, tmp_path: Path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        made_run(tmp_path / name)
    place = tmp_path / "new" / "report.json"
    place.write_text(json.dumps(json.loads(edited(place.read_text())) | {"chance": -1}))
    words = {"gate": [place, "--max-drop", 1], "report": [place, "--out", tmp_path / "a.html"]}
    done = invoke(command, *words.get(command, [tmp_path / "old", tmp_path / "new"]))
    assert done.exit_code == 2 and "chance" in done.stderr
