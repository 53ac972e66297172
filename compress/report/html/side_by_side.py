"""Several runs beside each other: a row for each, and quality against speed-up where their metric is the same."""

from __future__ import annotations

from collections.abc import Sequence

from compress.errors import BadInput
from compress.report import comparison, sentences
from compress.report.html import plots
from compress.report.html.run_folder import RunFolder
from compress.report.html.view import Beside, Graph, RunView, Table
from compress.report.records import Report
from compress.report.shipped import file_bytes


def beside(runs: Sequence[RunFolder], views: Sequence[RunView]) -> Beside:
    """Rows in the order in which the runs were given."""
    heading = ("run", "verdict", "method", "quality", "change", "speed-up [95 % CI]", "file", "MACs", "parameters")
    rows = tuple(_row(run, view) for run, view in zip(runs, views, strict=True))
    reports = {run.name: run.report for run in runs if run.report is not None}
    warnings: tuple[str, ...] = ()
    graph = None
    try:
        warnings = comparison.compared(reports, {}).warnings
        graph = _picture(reports)
    except BadInput as error:
        warnings = (str(error),)
    without = [run.name for run in runs if run.report is None]
    if without:
        warnings = (*warnings, f"Without a result: {', '.join(without)}.")
    return Beside(Table("The results beside each other", heading, rows), graph, warnings)


def _row(run: RunFolder, view: RunView) -> tuple[str, ...]:
    if run.report is None:
        return (run.name, view.verdict.headline, *("-",) * 7)
    dense, result = run.report.dense, run.report.result
    both = dense.quality is not None and result.quality is not None and dense.quality.metric == result.quality.metric
    return (
        run.name,
        view.verdict.headline,
        run.report.method,
        sentences.quality(result.quality) if result.quality else "-",
        sentences.change(dense.quality, result.quality) if both and dense.quality and result.quality else "-",
        sentences.speed_up(result.latency) if result.latency else "-",
        f"{sentences.size(dense.file_bytes)} → {sentences.size(file_bytes(run.report))}",
        f"{sentences.count(dense.macs)} → {sentences.count(result.macs)}",
        f"{sentences.count(dense.params)} → {sentences.count(result.params)}",
    )


def _picture(reports: dict[str, Report]) -> Graph | None:
    points = [
        (number, name, report.result.latency, report.result.quality)
        for number, (name, report) in enumerate(reports.items(), 1)
        if report.result.latency is not None and report.result.quality is not None
    ]
    if not points:
        return None
    first = points[0][3]
    assert first is not None
    factor = 100.0 if first.points == 100 else 1.0
    x = plots.x_axis([end for _, _, latency, _ in points if latency for end in (latency.ratio, *latency.ci95)] + [1.0])
    y = plots.y_axis([quality.value * factor for *_, quality in points if quality])
    marks = tuple(
        plots.Mark(
            x(latency.ratio),
            y(quality.value * factor),
            str(number),
            f"{number} {name}: {sentences.quality(quality)}, {sentences.speed_up(latency)}",
            1,
            (x(latency.ci95[0]), x(latency.ci95[1])),
        )
        for number, name, latency, quality in points
        if latency and quality
    )
    made = plots.Plot(
        f"{first.metric} against speed-up",
        "; ".join(mark.tip for mark in marks) + ".",
        "speed-up over the dense model of its own run; 1 is as fast",
        first.metric + (" in %" if factor == 100 else ""),
        x.ticks(),
        y.ticks(),
        marks=plots.labelled(marks),
    )
    return Graph(made, tuple((f"{mark.label} {name}", -1) for mark, (_, name, _, _) in zip(marks, points, strict=True)))
