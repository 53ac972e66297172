"""What is said of a name that is none, of a place that holds nothing to take, and where a terminal is narrow."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

import compress
from compress.cli import terminal
from compress.commands.demo import ARCH
from compress.errors import BadInput, EmptyData
from compress.pipeline import final_report, given
from compress.report import records
from compress.report.records import StageRecord, Stays
from compress.tuning.front import Tried, Tuning
from compress.user import code
from tests.runs import invoke, made_run, model_and_data

IMPORTS = "from torch import nn\nfrom torch.nn import Conv2d, Linear, ReLU\nfrom pathlib import Path\n"


def test_a_wrong_name_in_a_module_is_told_what_the_module_itself_has(tmp_path: Path):
    (tmp_path / "net.py").write_text(f"{IMPORTS}def digits_net(): ...\nclass Net(nn.Module): ...\n")
    place = tmp_path / "net.py"
    with pytest.raises(BadInput) as told:
        code.function(f"{place}:digit_net", "--arch")
    assert str(told.value).endswith(f"it has: digits_net, Net. Did you mean {place}:digits_net?")
    (tmp_path / "all.py").write_text(IMPORTS)
    with pytest.raises(BadInput, match=r"it has: Conv2d, Linear, ReLU, Path\.$"):  # where nothing else is, that is what there is
        code.function(f"{tmp_path / 'all.py'}:qqq", "--arch")


def test_a_folder_of_a_run_is_told_which_of_it_is_a_model(tmp_path: Path):
    (tmp_path / "out" / "model.compressed").mkdir(parents=True)
    with pytest.raises(BadInput, match=r"is the folder of a run; needed is one model\. Give its result, .*out/model.compressed"):
        compress.export(tmp_path / "out", out=tmp_path / "a.onnx")


def test_resume_in_a_folder_that_is_not_there_says_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    result = invoke("run", "--resume", "--out", "nope")
    assert result.exit_code == 2 and result.stderr.startswith("Error: There is no folder nope to go on in. "), result.stderr


@pytest.mark.parametrize(("minimize", "shown"), [("macs", 1), ("params", 1), ("latency", 1)])
def test_a_search_shows_no_figure_twice(minimize: str, shown: int):
    rows = (Tried(0, {"lr": "1"}, 0.1, (0.0, 0.2), 0.5, macs=0.5, seconds=1), Tried(1, {"lr": "2"}, reason="out of reach"))
    found = Tuning(minimize, "top1", rows, 0, 1.0, (), None)  # type: ignore[arg-type]
    assert found.columns.count("MACs") == shown and {len(row) for row in found.cells()} == {len(found.columns)}


def test_the_name_of_the_demonstrations_net_can_be_imported():
    place, _, name = ARCH.partition(":")
    assert callable(getattr(importlib.import_module(place), name)) and callable(compress.demo)
    # As recipes of before have it.
    assert code.function("compress.demo:digits_net", "--arch") is code.function(ARCH, "--arch")


def test_a_gate_is_as_wide_as_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "run").mkdir()
    made = records.read(made_run(tmp_path / "run"))[0]
    result = made.stages[0].model_copy(update={"stage": "remove", "params": 9})
    (tmp_path / "run" / "report.json").write_text(made.model_copy(update={"stages": (*made.stages, result)}).to_json())
    wide = invoke("gate", tmp_path / "run", "--max-params", "1M", "--max-macs", "0.5").stdout
    monkeypatch.setattr(terminal, "columns", lambda: 20)
    narrow = invoke("gate", tmp_path / "run", "--max-params", "1M", "--max-macs", "0.5").stdout
    assert max(map(len, wide.splitlines())) > 20 and wide.split() == narrow.split()
    assert [line for line in narrow.splitlines() if len(line) > 20 and " " in line] == []


def test_data_in_memory_is_not_sent_to_a_file(monkeypatch: pytest.MonkeyPatch):
    def refusing(*_: object, **__: object) -> None:
        raise EmptyData('Write task = "regression" into a data.toml.')

    monkeypatch.setattr(given, "open_objects", refusing)
    with pytest.raises(EmptyData, match=r"into compress\.data\.open_objects\(data, settings="):
        compress.plan(nn.Linear(2, 2), data=(torch.zeros(2, 2), torch.zeros(2)))


@pytest.mark.parametrize(
    ("target", "left", "said"),
    [
        ("macs=0.6", (0.6, 0.6, 0.46), "The target macs=0.6 was met by remove, and merge took the model on to macs=0.46."),
        ("params=0.6", (0.59, 0.59, 0.585), None),  # as close as a target is ever met
        ("macs=0.6", (0.45, 0.45, 0.45), None),  # by the stage that removed: it says so itself
        ("macs=0.6", (0.9, 0.9, 0.6), None),
        ("size=6MB", (0.5, 0.5, 0.3), None),
        (None, (0.5, 0.5, 0.3), None),
    ],
)
def test_a_target_that_later_stages_went_below_is_told(target: str | None, left: tuple[float, ...], said: str | None):
    counts = [10_000, *(round(10_000 * share) for share in left)]
    rows = [
        StageRecord(stage=name, params=n, macs=n, file_bytes=n, peak_memory_bytes=1, seconds=0)
        for name, n in zip(("dense", "remove", "finetune", "merge"), counts, strict=True)
    ]
    notes = final_report.further(target, rows)
    assert [note.partition(" A larger")[0] for note in notes] == ([said] if said else [])


def test_only_a_run_that_linearizes_says_what_could_not_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(final_report, "staying", lambda _: (Stays(activation="1", reason="padding cannot move"),))
    model_and_data(tmp_path)
    how = {"data": "data.npz", "target": "macs=0.5", "epochs": 0, "rounds": 5, "calibration": 60, "align": 1, "export": ()}
    for depth in (0, 1):
        report = compress.run("model.pt", depth=depth, out=f"out{depth}", allow_doubtful=True, **how)
        assert bool(report.stays) == any(row.stage == "linearize" for row in report.stages) == bool(depth), depth
