"""Stages, trainings, timings, proofs, exports and remarks of a run, as a page shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from compress.curves import Curve, TrainingCurve
from compress.measure.intervals import beside_one
from compress.report import sentences, table, weights
from compress.report.html import plots
from compress.report.html.run_folder import RunFolder
from compress.report.html.view import Choice, Graph, Remark, Switched, Table, Tone
from compress.report.records import Latency, Report, StageRecord
from compress.user.wording import many

Cost = Callable[[StageRecord], float | None]
COSTS: Mapping[str, tuple[str, str, Cost]] = {
    "ms": ("milliseconds", "milliseconds of a call (median of the rounds)", lambda s: s.latency and s.latency.p50_ms),
    "macs": ("MACs", "multiply-accumulates of one sample", lambda s: float(s.macs)),
    "bytes": ("bytes", "bytes of the ONNX file", lambda s: float(s.file_bytes)),
}
"""What a stage costs: key, name of the switch, label of the axis, and where it stands in the record."""
_MOST_LINES = 24
"""Of one picture: more of them nobody tells apart."""


def stages(records: Sequence[StageRecord], finished: bool) -> Switched | None:
    """Quality against what the model costs, after every stage; None where quality was never measured.

    `finished`: the last of them is the result of a run.
    """
    choices = tuple(
        Choice(key, name, made)
        for key, (name, label, cost) in COSTS.items()
        if (made := _against(records, name, label, cost)) is not None
    )
    if not choices:
        return None
    if not finished:
        # The last stage that there is, is not the result.
        choices = tuple(replace(c, plot=replace(c.plot, marks=tuple(replace(m, look=0) for m in c.plot.marks))) for c in choices)
    said = "1 the original model" + ("; the filled one is the result" if finished else "; none of them is a result")
    return Switched(choices, tuple(stage.stage for stage in records), said)


def _against(records: Sequence[StageRecord], name: str, label: str, cost: Cost) -> plots.Plot | None:
    first = next((stage.quality for stage in records if stage.quality), None)
    points = [
        (number, stage, value, stage.quality)
        for number, stage in enumerate(records, 1)
        if (value := cost(stage)) is not None and stage.quality is not None and first and stage.quality.metric == first.metric
    ]
    if not points or first is None:
        return None
    factor, unit = (100.0, " %") if first.points == 100 else (1.0, sentences.UNITS.get(first.metric, ""))
    xs = [value for _, _, value, _ in points]
    ends = {number: _ends(stage) for number, stage, _, _ in points} if name == "milliseconds" else {}
    spans = {number: _span(records[0], stage, factor) for number, stage, _, _ in points}
    ys = [quality.value * factor for *_, quality in points]
    x = plots.x_axis([*xs, *(e for pair in ends.values() if pair for e in pair)], from_zero=True)
    y = plots.y_axis([*ys, *(e for pair in spans.values() if pair for e in pair)])
    together: dict[tuple[float, float], list[int]] = {}
    for number, _, value, quality in points:
        together.setdefault((x(value), y(quality.value * factor)), []).append(number)
    marks = []
    for place, numbers in together.items():
        number = numbers[0]
        span, wide = spans[number], ends.get(number)
        tip = "; ".join(f"{n} {records[n - 1].stage}: {_told(records[n - 1], cost, name)}" for n in numbers)
        marks.append(
            plots.Mark(
                *place,
                _numbers(numbers),
                tip,
                1 if len(records) in numbers else 0,
                wide and (x(wide[0]), x(wide[1])),
                span and (y(span[0]), y(span[1])),
            )
        )
    # The result last, so that nothing lies over it.
    marks.sort(key=lambda mark: mark.look)
    told = "; ".join(f"{number} {stage.stage}: {_told(stage, cost, name)}" for number, stage, _, _ in points)
    better = "higher is better" if first.higher_is_better else "lower is better"
    return plots.Plot(
        f"Quality against {name}",
        f"{told}.",
        label,
        f"{first.metric}{unit and f' in{unit}'}, {better}",
        x.ticks(),
        y.ticks(),
        (plots.line("stages in order", xs, ys, x, y, 0),),
        plots.labelled(marks),
    )


def _numbers(numbers: Sequence[int]) -> str:
    return (
        str(numbers[0])
        if len(numbers) == 1
        else f"{numbers[0]}-{numbers[-1]}"
        if len(numbers) > 2
        else ",".join(map(str, numbers))
    )


def _ends(stage: StageRecord) -> tuple[float, float] | None:
    return stage.latency.p50_ci95_ms if stage.latency else None


def _span(dense: StageRecord, stage: StageRecord, factor: float) -> tuple[float, float] | None:
    """Quality at both ends of the interval of its loss."""
    if stage.quality is None or dense.quality is None or stage.quality.drop_ci95 is None:
        return None
    sign = 1.0 if stage.quality.higher_is_better else -1.0
    low, high = (dense.quality.value - sign * lost / stage.quality.points for lost in stage.quality.drop_ci95)
    return (low * factor, high * factor)


def _told(stage: StageRecord, cost: Cost, name: str) -> str:
    value, quality = cost(stage) or 0.0, stage.quality
    shown = sentences.size(value) if name == "bytes" else f"{value:.3g} ms" if name == "milliseconds" else sentences.count(value)
    return f"{sentences.quality(quality) if quality else 'not measured'} at {shown}"


def stage_table(run: RunFolder) -> Table | None:
    """The table of report.md."""
    if not run.stages:
        return None
    return Table("Every stage, measured the same way", table.headings(run.stages), tuple(table.cells(run.stages)))


def trainings(found: Sequence[TrainingCurve]) -> tuple[Graph, ...]:
    """Held-out quality and loss of each training."""
    graphs: list[Graph] = []
    for number, one in enumerate(found, 1):
        where = f"Training {number} of {len(found)} ({one.stage})" if len(found) > 1 else f"Training ({one.stage})"
        xs = [epoch.number for epoch in one.epochs]
        ys = [epoch.quality for epoch in one.epochs]
        chosen = one.epochs[one.chosen] if one.chosen < len(one.epochs) else None
        note = (
            ""
            if chosen is None
            else f"The weights of epoch {chosen.number:g} were taken: {one.metric} {chosen.quality:.4g} on held-out data."
        )
        graphs.append(
            _graph(
                f"{where}: {one.metric} on held-out data",
                "epochs",
                one.metric,
                [(one.metric, xs, ys)],
                note,
                chosen and (chosen.number, chosen.quality),
            )
        )
        losses = [(epoch.number, epoch.loss) for epoch in one.epochs if epoch.loss is not None]
        if losses:
            graphs.append(
                _graph(
                    f"{where}: loss",
                    "epochs",
                    "mean loss of the epoch",
                    [("loss", [a for a, _ in losses], [b for _, b in losses])],
                )
            )
    return tuple(graphs)


def curves(found: Sequence[Curve]) -> tuple[Graph, ...]:
    """What stages left to be drawn."""
    return tuple(
        _graph(
            one.title,
            one.x,
            one.y,
            [(s.name, list(s.x), list(s.y)) for s in one.series[:_MOST_LINES] if s.x],
            " ".join(
                part
                for part in (
                    one.note,
                    *(f"Vertical line {name}: {at:g}." for name, at in one.marks.items()),
                    f"{len(one.series) - _MOST_LINES} more lines are in report.json." if len(one.series) > _MOST_LINES else "",
                )
                if part
            ),
            log=one.log_x and all(v > 0 for s in one.series for v in s.x),
            levels=one.levels,
        )
        for one in found
        if any(s.x for s in one.series)
    )


def _graph(
    title: str,
    x_label: str,
    y_label: str,
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    note: str = "",
    mark: tuple[float, float] | None = None,
    log: bool = False,
    levels: Mapping[str, float] | None = None,
) -> Graph:
    levels = levels or {}
    x = plots.x_axis([v for _, xs, _ in series for v in xs], log=log, width=plots.NARROW)
    y = plots.y_axis([*(v for _, _, ys in series for v in ys), *levels.values()])
    told = "; ".join(
        f"{name} goes from {ys[0]:.4g} to {ys[-1]:.4g}, lowest {min(ys):.4g}, highest {max(ys):.4g}" for name, _, ys in series
    )
    # A line through one point shows nothing.
    marks = [plots.Mark(x(xs[0]), y(ys[0]), "", name) for name, xs, ys in series if len(xs) == 1]
    marks += [] if mark is None else [plots.Mark(x(mark[0]), y(mark[1]), "", "the epoch that was taken", 1)]
    made = plots.Plot(
        title,
        f"{told}.",
        x_label,
        y_label,
        x.ticks(),
        y.ticks(),
        tuple(plots.line(name, xs, ys, x, y, i) for i, (name, xs, ys) in enumerate(series)),
        tuple(marks),
        levels=tuple(plots.Tick(y(value), name) for name, value in levels.items()),
        width=plots.NARROW,
    )
    return Graph(made, tuple((name, i % plots.LOOKS) for i, (name, _, _) in enumerate(series)) if len(series) > 1 else (), note)


def latency(report: Report) -> tuple[tuple[Graph, ...], str]:
    """Rounds of the result beside those of the dense model, as a distribution and in time; or why there are none."""
    now = report.result.latency
    if now is None:
        return (), "Latency was not measured in this run."
    if not now.rounds_ms or len(now.rounds_ms) != len(now.dense_rounds_ms):
        return (), "This run does not hold its single rounds; its medians and their intervals stand in the table of the stages."
    names = ("the original model", "the result")
    both = (now.dense_rounds_ms, now.rounds_ms)
    rounds = list(range(1, len(now.rounds_ms) + 1))
    in_time = _graph(
        "Milliseconds of a call, round by round",
        "round, in time",
        "milliseconds",
        [(name, rounds, values) for name, values in zip(names, both, strict=True)],
        "Both were timed in every round, in shuffled order: what slowed a round down slowed both.",
    )
    return (_distribution(now, names, both), in_time), ""


def _distribution(now: Latency, names: Sequence[str], both: Sequence[Sequence[float]]) -> Graph:
    """How many rounds took at most so many milliseconds, as a share."""
    series = [
        (name, sorted(values), [100 * (i + 1) / len(values) for i in range(len(values))])
        for name, values in zip(names, both, strict=True)
    ]
    made = _graph(
        "How long a call takes: share of rounds up to so many milliseconds",
        "milliseconds of a call",
        "percent of the rounds",
        series,
        f"A steep line is a steady time. The speed-up is the median over {len(both[0])} rounds of the ratio within a round: "
        f"{now.ratio:.2f}, 95 % interval {beside_one(now.ci95[0])} to {beside_one(now.ci95[1])}.",
    )
    return made


def exactness(report: Report) -> tuple[Tone, str] | None:
    """Is the smaller model the masked one?"""
    found = report.exactness
    if found is None:
        return None
    word = "equal" if found.holds else "do NOT equal"
    return (
        "good" if found.holds else "bad",
        f"Channels removed {word} channels masked, and layers merged the layers they replace: the worst difference of outputs "
        f"is {found.worst_abs:.2g}, allowed {found.tolerance:.2g}, on {many(found.samples, 'sample')}, before any weight was "
        "refitted.",
    )


def exports(report: Report) -> Table | None:
    """Files and how near they are to the model."""
    if not report.exports:
        return None
    heading = ("file", "format", "size", "worst difference", "allowed", "relative error", "same class", "quality", "sha256")
    rows = tuple(
        (
            one.path,
            one.format,
            "-" if one.bytes is None else sentences.size(one.bytes),
            f"{one.parity.worst_abs:.2g}" if one.parity else "-" if one.closeness else "not checked",
            f"{one.parity.tolerance:.2g}" if one.parity else "-",
            "-" if one.closeness is None else f"{one.closeness.relative:.2g}",
            "-" if one.closeness is None or one.closeness.agreement is None else f"{one.closeness.agreement:.2%}",
            sentences.quality(one.quality) if one.quality else "that of the model",
            f"{one.sha256[:16]}...",
        )
        for one in report.exports
    )
    return Table("Exported files, compared with the model on the same real inputs", heading, rows)


Weight = Literal["broken", "warning", "missing", "note"]


def remarks(run: RunFolder) -> tuple[Remark, ...]:
    """Everything that was said, the gravest first; among equals in the order in which it was said."""
    said: list[tuple[str, str]] = []
    report = run.report
    if report is not None and report.broken is not None:
        said.append(("broken", sentences.broken(report.broken)))
    said += [("warning", text) for text in (*run.warnings, *run.broken)]
    if report is not None:
        said += [("missing", text) for text in sentences.exports(report) if text.startswith("No ")]
    notes = sorted(run.notes, key=weights.weight)
    said += [("missing" if text.startswith(weights.MISSING) else "note", text) for text in notes]
    if report is not None:
        said += [("note", text) for text in sentences.exports(report) if not text.startswith("No ")]
    order: tuple[Weight, ...] = ("broken", "warning", "missing", "note")
    return tuple(Remark(weight, text) for weight in order for text in dict.fromkeys(t for w, t in said if w == weight))
