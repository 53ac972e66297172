"""The report: its schema, its words, its tables."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console

import compress.report as package
from compress.errors import BadInput
from compress.measure.points import drop
from compress.progress import duration
from compress.report import sentences
from compress.report.environment import environment
from compress.report.markdown import markdown
from compress.report.records import (
    Environment,
    Exactness,
    ExportRecord,
    Latency,
    Outcome,
    Parity,
    Quality,
    Report,
    StageRecord,
    from_json,
    json_schema,
)
from compress.report.table import columns, rows, table
from tests.runs import edited

SCHEMA_FILE = Path(package.__file__).parent / "schema.json"


def latency(ratio: float, low: float, high: float, p50_ms: float = 4.0) -> Latency:
    return Latency(runtime="ort", batch=1, threads=2, p50_ms=p50_ms, ratio=ratio, ci95=(low, high))


def stage(name: str, params: int, time: Latency | None, top1: float | None) -> StageRecord:
    return StageRecord(
        stage=name,
        params=params,
        macs=params * 100,
        file_bytes=params * 4,
        peak_memory_bytes=params * 4 + 65536,
        latency=time,
        quality=None if top1 is None else Quality(metric="top1", value=top1, samples=10000),
        seconds=0 if name == "dense" else 75,
    )


ONNX = ExportRecord(format="onnx", path="model.onnx", sha256="ab" * 32, parity=Parity(worst_abs=1e-6, tolerance=1e-3))


def report(result: Latency | None = None, top1: float = 0.868, **fields: object) -> Report:
    result = result or latency(1.83, 1.79, 1.88, 2.19)
    settings: dict[str, object] = {
        "method": "entropic",
        "verdict": "Kept: 0.50 points lost, 1.00 allowed.",
        "seed": 0,
        "environment": Environment(
            compress="0.1.0",
            python="3.12.1",
            torch="2.15.0",
            onnx="1.23.2",
            onnxruntime=None,
            os="Linux 6 x86_64",
            cpu="a processor",
            cores=2,
            gpu=None,
            date="2026-11-21T10:00:00+00:00",
        ),
        "stages": (
            stage("dense", 270_000, latency(1, 1, 1), 0.873),
            stage("remove", 68_000, latency(1.01, 0.97, 1.04), None),
            stage("finetune", 68_000, result, top1),
        ),
        "exactness": Exactness(worst_abs=2e-6, tolerance=1e-4, samples=256),
        "exports": (
            ExportRecord(format="onnx", path="model.onnx", sha256="ab" * 32, parity=Parity(worst_abs=1e-6, tolerance=1e-3)),
        ),
        "notes": ("fc is frozen: it gives the model's output",),
    }
    return Report(**(settings | fields))  # type: ignore[arg-type]


def test_the_json_has_the_documented_shape():
    data = json.loads(report().to_json())
    assert data["schema"] == 2
    assert {"method", "verdict", "seed", "environment", "stages", "exactness", "exports", "notes"} <= set(data)
    assert list(data["stages"][0]) == [
        "stage",
        "params",
        "macs",
        "file_bytes",
        "peak_memory_bytes",
        "latency",
        "quality",
        "seconds",
    ]
    timed = ["runtime", "batch", "threads", "p50_ms", "ratio", "ci95", "p50_ci95_ms", "noisy", "calm"]
    timed += ["rounds_ms", "dense_rounds_ms"]
    assert list(data["stages"][0]["latency"]) == timed
    assert list(data["stages"][0]["quality"]) == ["metric", "value", "samples", "higher_is_better", "points", "drop_ci95"]
    assert data["exports"][0]["parity"] == {"worst_abs": 1e-6, "tolerance": 1e-3}


def test_the_shipped_schema_is_current_and_accepts_a_report():
    shipped = json.loads(SCHEMA_FILE.read_text())
    assert shipped == json_schema(), "run: python -c 'from compress.report.records import *; write_schema(...)'"
    jsonschema.Draft202012Validator.check_schema(shipped)
    jsonschema.validate(json.loads(report().to_json()), shipped)


@pytest.mark.parametrize("broken", [{"schema": 3}, {"stages": []}, {"seed": "zero"}, {"extra": 1}])
def test_the_shipped_schema_refuses_what_is_no_report(broken: dict[str, object]):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(report().to_json()) | broken, json.loads(SCHEMA_FILE.read_text()))


def test_a_report_reads_back_equal():
    read = from_json(report().to_json())
    assert read.checksum == json.loads(read.to_json())["checksum"]
    assert read.model_copy(update={"checksum": None}) == report()


def test_a_report_may_be_formatted_anew_and_changed_only_without_its_checksum():
    text = report().to_json()
    values = json.loads(text)
    assert from_json(json.dumps(dict(sorted(values.items())))) == from_json(text)
    rest = {key: value for key, value in values.items() if key != "checksum"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    assert values["checksum"] == hashlib.sha256(canonical.encode()).hexdigest()
    with pytest.raises(BadInput, match=r"changed after it was written.*removes the entry 'checksum'"):
        from_json(text.replace("270000", "270001", 1))
    assert from_json(edited(text, "270000", "270001")).dense.params == 270_001


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        ("3.00x fewer parameters, top1 -0.20.", Outcome.KEPT),
        ("The result loses 2.00 points of top1, more than --max-drop 1 allows.", Outcome.QUALITY_LOST),
        ("The export onnx-int8 loses 2.00 points of top1, more than --max-drop 1 allows.", Outcome.EXPORT_LOST_QUALITY),
        ("The export openvino failed: its outputs differ.", Outcome.EXPORT_NOT_EQUAL),
    ],
)
def test_a_report_of_the_first_schema_is_read(verdict: str, outcome: Outcome):
    old = json.loads(edited(report().to_json())) | {"schema": 1, "verdict": verdict}
    del old["outcome"], old["broken"], old["warnings"]
    old["stages"].insert(1, old["stages"][0] | {"stage": "analyse"})
    read = from_json(json.dumps(old))
    assert (read.outcome, read.verdict, read.schema_version) == (outcome, verdict, 2)
    assert read.stages[1].stage == "analyze"


@pytest.mark.parametrize("field", ["stages", "exports"])
@pytest.mark.parametrize("value", [1, None, True, "text", {}])
def test_a_report_of_the_first_schema_with_something_else_for_a_list_is_refused(field: str, value: object):
    old = json.loads(edited(report().to_json())) | {"schema": 1, field: value}
    with pytest.raises(BadInput, match=field):
        from_json(json.dumps(old))


def test_a_file_that_is_no_report_is_bad_input_and_names_the_field():
    text = edited(report().to_json(), '"seed": 0', '"seed": "x"')
    with pytest.raises(BadInput, match="seed"):
        from_json(text)
    with pytest.raises(BadInput, match="cannot be read"):
        from_json("<html>")


def test_a_number_that_json_does_not_have_is_refused():
    with pytest.raises(ValueError, match="finite"):
        Quality(metric="psnr", value=float("inf"), samples=1)


def test_a_speed_up_is_claimed_only_beside_one():
    assert "1.83x faster in ort with batch 1 on 2 threads (2.19 ms a call; 95 % confidence interval 1.79 to 1.88)" in " ".join(
        sentences.sentences(report())
    )
    unclear = " ".join(sentences.sentences(report(latency(1.2, 0.98, 1.4))))
    assert "Not measurably faster" in unclear and "x faster" not in unclear
    slower = " ".join(sentences.sentences(report(latency(0.8, 0.7, 0.9))))
    assert "Slower in ort" in slower and "faster" not in slower


def test_quality_is_said_in_points_with_its_direction():
    assert "86.80 % on 10,000 samples: 0.50 points worse than the dense model's 87.30 %" in " ".join(
        sentences.sentences(report())
    )
    assert "0.20 points better" in " ".join(sentences.sentences(report(top1=0.875)))
    assert "the same as" in " ".join(sentences.sentences(report(top1=0.873)))


def test_a_failed_exactness_is_said_out_loud():
    exact = " ".join(sentences.sentences(report()))
    broken = " ".join(sentences.sentences(report(exactness=Exactness(worst_abs=0.1, tolerance=1e-4, samples=8))))
    assert "removed equal channels masked" in exact and "removed do NOT equal channels masked" in broken


@pytest.mark.parametrize(
    ("metric", "dense", "now", "lost", "shown"),
    [
        ("top1", 0.90, 0.89, 1.0, "-1.00"),
        ("psnr", 30.0, 29.5, 0.5, "-0.50 dB"),
        ("mae", 2.0, 2.5, 0.5, "-0.50"),
        ("miou", 0.5, 0.6, -10.0, "+10.00"),
    ],
)
def test_a_drop_is_positive_when_the_model_got_worse(metric: str, dense: float, now: float, lost: float, shown: str):
    native = {"points": 1.0, "higher_is_better": metric != "mae"} if metric in ("psnr", "mae") else {}
    before, after = (Quality(metric=metric, value=value, samples=1, **native) for value in (dense, now))
    assert drop(before, after) == pytest.approx(lost)
    assert sentences.change(before, after) == shown


@pytest.mark.parametrize(
    ("written", "figure"),
    [
        (sentences.count(11_689_512), "11.69 M"),
        (sentences.count(999), "999"),
        (sentences.size(57_500_000), "57.5 MB"),
        (sentences.size(12), "12 B"),
        (duration(75), "1 min 15 s"),
        (duration(7300), "2 h 1 min"),
        (duration(0.25), "0.2 s"),
        (sentences.times(270, 68), "3.97x"),
    ],
)
def test_figures_are_written_for_people(written: str, figure: str):
    assert written == figure


def test_the_table_has_a_row_per_stage_dense_first():
    shown = rows(report())
    assert [row[0] for row in shown] == ["dense", "remove", "finetune"]
    assert all(len(row) == len(columns(report())) for row in shown)
    assert "top1" in columns(report())
    assert shown[0][6] == "1x" and shown[1][6].endswith("?") and not shown[2][6].endswith("?")
    assert shown[2][8] == "-0.50" and shown[1][7] == "-"


def test_the_terminal_shows_every_cell():
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table(report()))
    console.file.close()
    text = console.export_text()
    assert all(cell in text for row in rows(report()) for cell in row)


def test_markdown_has_the_verdict_the_table_and_the_notes():
    text = markdown(report(target="params=0.25", max_drop=1.0, plan_sha256="cd" * 32))
    lines = text.splitlines()
    assert "**Kept: 0.50 points lost, 1.00 allowed.**" in lines
    heading = next(i for i, line in enumerate(lines) if line.startswith("| stage |"))
    assert [line.split(" | ")[0] for line in lines[heading + 2 : heading + 5]] == ["| dense", "| remove", "| finetune"]
    assert "- fc is frozen: it gives the model's output" in lines
    assert "| allowed drop | 1 points |" in lines and f"| plan sha256 | {'cd' * 32} |" in lines
    assert "onnxruntime" not in next(line for line in lines if line.startswith("| versions"))


def test_text_of_others_cannot_break_the_markdown_table():
    text = markdown(report(method="a|b\nc"))
    assert "| method | a\\|b c |" in text.splitlines()


def test_the_environment_is_complete_and_names_nobody():
    found = environment()
    assert found.cores >= 1 and found.cpu and found.torch and found.onnxruntime
    assert "+00:00" in found.date
    assert str(Path.home()) not in found.model_dump_json() or str(Path.home()) == "/"
