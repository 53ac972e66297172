"""The stage table: one row per stage, the dense model first. The same cells serve the terminal and the Markdown report."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from compress.progress import duration
from compress.report import sentences
from compress.report.records import Latency, Report, StageRecord


def columns(report: Report) -> tuple[str, ...]:
    """Headings; the metric names its own column."""
    return headings(report.stages)


def headings(stages: Sequence[StageRecord]) -> tuple[str, ...]:
    """The same of stages without a report."""
    metric = next((stage.quality.metric for stage in stages if stage.quality), "quality")
    return ("stage", "params", "MACs", "file", "peak memory", "p50 ms (dense)", "speed-up [95 % CI]", metric, "change", "time")


def rows(report: Report) -> list[tuple[str, ...]]:
    """Cells of every stage, in the order of `columns`; '-' where something was not measured."""
    return cells(report.stages)


def cells(stages: Sequence[StageRecord]) -> list[tuple[str, ...]]:
    """The same of stages without a report; the first is the dense model."""
    return [_row(stage, stages[0]) for stage in stages]


def table(report: Report, title: str | None = None, without: Sequence[str] = ()) -> Table:
    """For the terminal: `rich.console.Console().print(table(report))`; `without` names columns that are left out."""
    drawn = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    places = [i for i, heading in enumerate(columns(report)) if heading not in without]
    for i in places:
        heading = columns(report)[i]
        drawn.add_column(heading, justify="right" if i else "left", no_wrap=True)
    last = len(report.stages) - 1
    for i, row in enumerate(rows(report)):
        drawn.add_row(*(escape(row[place]) for place in places), style="bold" if i == last and last else None)
    return drawn


def _row(stage: StageRecord, dense: StageRecord) -> tuple[str, ...]:
    latency, quality = stage.latency, stage.quality
    is_dense = stage is dense
    comparable = quality is not None and dense.quality is not None and quality.metric == dense.quality.metric
    return (
        stage.stage,
        sentences.count(stage.params),
        sentences.count(stage.macs),
        sentences.size(stage.file_bytes),
        sentences.size(stage.peak_memory_bytes),
        _milliseconds(latency, is_dense) if latency else "-",
        "1x" if is_dense and latency else sentences.speed_up(latency) if latency else "-",
        sentences.quality(quality) if quality else "-",
        sentences.change(dense.quality, quality) if comparable and not is_dense else "-",  # type: ignore[arg-type]
        duration(stage.seconds) if stage.seconds else "-",
    )


def _milliseconds(latency: Latency, is_dense: bool) -> str:
    """Of a call, and in the same rounds of one of the dense model: its own row was timed at another time."""
    return f"{latency.p50_ms:.3g}" + ("" if is_dense else f" ({sentences.dense_ms(latency):.3g})")
