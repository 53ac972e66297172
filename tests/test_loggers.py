"""A run and its trackers: what they are told, offline, and that none of them can end it."""

from __future__ import annotations

import json
import os
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from live import net, samples

import compress
from compress.cli.main import cli
from compress.errors import BadInput, CompressWarning, GateFailed
from compress.loggers import logged, sinks
from compress.recipe import make
from compress.report import records

QUICK: Any = {"target": "macs=0.6", "method": "magnitude", "epochs": 2, "calibration": 60, "rounds": 5, "align": 1, "qat": 0}
LOCAL = ("MLFLOW_TRACKING_URI", "WANDB_MODE", "TRACKIO_SPACE_ID", "TRACKIO_DIR")


class Told:
    """A tracker that keeps what it is told, and breaks where it should."""

    all: list[Told] = []  # noqa: RUF012
    breaks = ""

    def __init__(self, folder: Path, name: str) -> None:
        self._called("open")
        self.name, self.calls = name, list[tuple[Any, ...]]()
        Told.all.append(self)

    def _called(self, what: str) -> None:
        if what == Told.breaks:
            if what == "close":  # some exit
                raise SystemExit("nobody\nanswers")
            raise ConnectionError("nobody\nanswers")

    def settings(self, values: Any) -> None:
        self._called("settings")
        self.calls.append(("settings", dict(values)))

    def figures(self, group: str, values: Any, step: int) -> None:
        self._called("figures")
        self.calls.append((group, dict(values), step))

    def files(self, paths: list[Path], verdict: str) -> None:
        self._called("files")
        self.calls.append(("files", [path.name for path in paths], verdict))

    def close(self, kept: bool) -> None:
        self._called("close")
        self.calls.append(("close", kept))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> type[Told]:
    monkeypatch.setitem(sinks.SINKS, "tensorboard", Told)
    module = ModuleType("tensorboard")
    module.__spec__ = SimpleNamespace(name="tensorboard")  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "tensorboard", module)
    monkeypatch.setattr(Told, "all", [])
    monkeypatch.setattr(Told, "breaks", "")
    return Told


def run(out: Path, log: Any, **more: Any) -> Any:
    return compress.run(net(), out=out, log=log, **{"data": samples(), **QUICK, **more})


def test_a_tracker_is_told_settings_stages_trainings_and_the_report(told: type[Told], tmp_path: Path):
    report = run(tmp_path / "mine", "tensorboard").report
    (tracker,) = told.all
    assert tracker.name == "mine" and tracker.calls[0][0] == "settings" and tracker.calls[0][1]["target"] == "macs=0.6"
    stages = [call for call in tracker.calls if call[0] == "stages"]
    assert [(call[1]["macs"], call[2]) for call in stages] == [(row.macs, i) for i, row in enumerate(report.stages)]
    assert stages[-1][1]["top1"] == report.result.quality.value and "p50_ms" in stages[0][1]
    epochs = [call for call in tracker.calls if call[0] == "training-finetune"]
    assert [call[2] for call in epochs] == [0, 1, 2] and "loss" not in epochs[0][1] and epochs[1][1]["loss"] > 0
    assert tracker.calls[-2:] == [("files", list(logged.FILES), report.verdict), ("close", True)]


def test_a_run_that_breaks_its_contract_is_told_as_failed(told: type[Told], tmp_path: Path):
    x, _ = samples(200)
    right = net()(x).argmax(1)  # so that the dense model is always right, and any other plainly less often
    with pytest.raises(GateFailed):
        run(tmp_path / "out", ["tensorboard"], data=(x, right), max_drop=0.1, epochs=0, target="macs=0.1")
    assert told.all[0].calls[-1] == ("close", False) and "files" in [call[0] for call in told.all[0].calls]


def test_a_report_that_somebody_changed_does_not_keep_trackers_from_being_closed(told: type[Told], tmp_path: Path):
    made = logged.Loggers(["tensorboard"], tmp_path, make(model="m.pt", data="digits"))
    made._begin()
    (tmp_path / "report.json").write_text("{")
    made.close(True)
    assert told.all[0].calls[-2:] == [("files", ["report.json"], "no result"), ("close", True)]


@pytest.mark.parametrize("breaks", ["open", "settings", "figures", "files", "close"])
def test_a_tracker_that_cannot_be_reached_does_not_end_the_run(told: type[Told], tmp_path: Path, breaks: str):
    told.breaks = breaks
    with pytest.warns(CompressWarning, match=r"no longer logged to tensorboard \(nobody answers\), and goes on") as seen:
        report = run(tmp_path / "out", "tensorboard", epochs=0).report
    # What is told once everything is written can be in no file.
    assert report.exports and [one for one in report.warnings if "logged to" in one] == (
        [] if breaks in ("files", "close") else list(report.asides)
    )
    assert sum("logged to" in str(one.message) for one in seen) == 1


def test_a_tracker_that_is_not_installed_is_told_and_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)  # type: ignore[arg-type]
    with pytest.warns(CompressWarning, match=r"not logged to mlflow, which is not installed.*entropress\[mlflow\]"):
        report = run(tmp_path / "out", "mlflow", epochs=0).report
    assert len(report.asides) == 1 and "not logged to mlflow" in report.asides[0] and report.asides[0] in report.warnings
    assert not report.verdict.startswith("Doubtful")


def test_a_tracker_that_nobody_knows_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(BadInput, match="log is 'neptune'; known are tensorboard, mlflow, wandb, trackio"):
        run(tmp_path / "out", "tensorboard,neptune")
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(cli, ["run", __file__, "--data", "digits", "--log", "neptune"])
    assert done.exit_code == 2 and "--log is 'neptune'" in done.stderr


def needs(name: str) -> Any:
    return pytest.mark.skipif(find_spec(name) is None, reason=f"{name} is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in sinks.SINKS])
def test_each_tracker_takes_a_run_offline(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for variable in LOCAL:
        monkeypatch.delenv(variable, raising=False)
    for variable in sinks.QUIET:
        monkeypatch.setenv(variable, sinks.QUIET[variable])
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        report = run(tmp_path / "out", name).report
    assert [str(one.message) for one in seen if "logged" in str(one.message)] == []
    place = tmp_path / "out" / "trackers" / name
    assert any(path.is_file() for path in place.rglob("*"))
    READ[name](place, report)


def of_tensorboard(place: Path, report: records.Report) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(place))
    found.Reload()
    assert [one.value for one in found.Scalars("stages/macs")] == [row.macs for row in report.stages]
    assert len(found.Scalars("training-finetune/loss")) == 2


def of_mlflow(place: Path, report: records.Report) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{place / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("compress").experiment_id])
    assert [one.value for one in client.get_metric_history(run.info.run_id, "stages/macs")] == [row.macs for row in report.stages]
    assert run.data.params["target"] == "macs=0.6" and run.info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == set(logged.FILES)


def of_wandb(place: Path, report: records.Report) -> None:
    assert list(place.glob("wandb/offline-run-*/*.wandb"))
    assert os.environ.get("WANDB_MODE") is None


def of_trackio(place: Path, report: records.Report) -> None:
    import sqlite3

    (path,) = place.glob("*.db")
    rows = [json.loads(row[0]) for row in sqlite3.connect(path).execute("select metrics from metrics order by id")]
    assert [row["stages/macs"] for row in rows if "stages/macs" in row] == [row.macs for row in report.stages]


READ: dict[str, Any] = {"tensorboard": of_tensorboard, "mlflow": of_mlflow, "wandb": of_wandb, "trackio": of_trackio}
