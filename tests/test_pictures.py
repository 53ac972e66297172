"""Curves that stages leave: carried through a run, written down, drawn."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from compress.curves import CURVES, Curve, Series
from compress.report import pictures
from compress.report.markdown import markdown
from compress.report.records import Environment, Quality, Report, StageRecord, from_json

CURVE = Curve(
    "Accuracy against sparsity", "weights left, %", "top-1, %",
    (Series("original", (100.0, 50.0), (98.0, 97.5)), Series("random", (100.0, 50.0), (98.0, 96.0))),
    levels={"dense": 98.0}, note="One seed.",
)  # fmt: skip


@pytest.fixture
def report() -> Report:
    here = Environment(
        compress="0", python="3", torch="2", onnx=None, onnxruntime=None, os="", cpu="", cores=1, gpu=None, date=""
    )
    quality = Quality(metric="top1", value=0.9, samples=10)
    dense = StageRecord(stage="dense", params=1, macs=1, file_bytes=1, peak_memory_bytes=1, quality=quality, seconds=0)
    return Report(method="lottery", verdict="", seed=0, environment=here, stages=(dense,), curves=(CURVE,))


def test_a_curve_survives_json():
    assert CURVES.validate_python(json.loads(json.dumps(CURVES.dump_python((CURVE,), mode="json")))) == (CURVE,)


@pytest.mark.parametrize(("x", "y"), [((1.0,), (1.0, 2.0)), ((1.0,), (float("nan"),))])
def test_a_series_that_cannot_be_drawn_is_refused(x: tuple[float, ...], y: tuple[float, ...]):
    with pytest.raises(ValueError, match="as many of both, all finite"):
        Series("odd", x, y)


def test_pictures_are_drawn_once_and_named_in_the_report(report: Report, tmp_path: Path):
    drawn = pictures.draw(report, tmp_path / "pictures")
    picture = tmp_path / "pictures" / "accuracy-against-sparsity.svg"
    assert drawn.pictures == (picture.name,)
    first = picture.read_bytes()
    assert b"<svg" in first
    pictures.draw(report, tmp_path / "pictures")
    assert picture.read_bytes() == first
    assert f"](pictures/{picture.name})\n\nOne seed." in markdown(drawn)
    assert from_json(drawn.to_json()).curves == (CURVE,)


def test_without_matplotlib_the_report_says_where_the_figures_are(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = builtins.__import__

    def absent(name: str, *more: Any, **named: Any) -> Any:
        if name == "matplotlib":
            raise ImportError(name)
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", absent)
    drawn = pictures.draw(report, tmp_path / "pictures")
    assert not drawn.pictures and "pip install 'entropress[pictures]'" in drawn.notes[-1]
    assert not (tmp_path / "pictures").exists() and "![" not in markdown(drawn)
