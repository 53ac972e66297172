"""Runs beside each other, and which of them no other one beats.

A run is on the Pareto front where no other is at least as fast and as good, and better in one of the two. Points decide that, not
intervals: the table shows these. Runs of one target are only held against each other where their budgets came out equal, within
2 %: less is always faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from compress.curves import Curve, Series
from compress.errors import BadInput
from compress.measure.points import drop
from compress.progress import duration
from compress.recipe import parse_target
from compress.report import escape, pictures, sentences
from compress.report.markdown import bullets, grid
from compress.report.records import Report
from compress.report.shipped import file_bytes

COLUMNS = ("run", "method", "params", "MACs", "file", "speed-up [95 % CI]", "quality", "change [95 % CI]", "time", "Pareto front")
CLOSE = 0.02
"""How far from each other, as a share of what was asked for, budgets are still equal."""
MISSED, UNCLAIMED = " *", " ?"
LEGEND = (
    "* is more than 2 % off the target of the run. 'Pareto front': no other run is as fast and as good, and better in one of "
    "them; runs of one target are held against each other where their budgets came out equal, within 2 %, and '-' is a run "
    "without any such other one. A result that only guesses is never on it."
)


@dataclass(frozen=True)
class Run:
    """The result of one run.

    Attributes:
        params, macs: shares of the dense model's.
        file_bytes: of the file that is shipped.
        speed_up, speed_up_ci95: over the run's own dense model; None where nothing was timed.
        pace: what may be said of that: faster, slower, neither, or nothing, because it is too noisy to tell.
        quality: of the metric of the comparison; `lost` is in points beside the run's own dense model.
        seconds: of all stages, without measuring.
        target: what was asked for, such as macs=0.5.
        reached: the figure that was asked for, as it came out; None where no target is in params, macs or size.
        missed: whether that is more than 2 % off the target.
        front: whether no other run of an equal budget is as fast and as good, and better in one of them; None where there are
            others, and none had the same budget.
        reason: why there is no result; nothing else is known then.
        guesses: whether the result, or the dense model itself, only guesses: then nothing is known of what it lost.
    """

    run: str
    method: str
    params: float | None = None
    macs: float | None = None
    file_bytes: int | None = None
    speed_up: float | None = None
    speed_up_ci95: tuple[float, float] | None = None
    quality: float | None = None
    lost: float | None = None
    lost_ci95: tuple[float, float] | None = None
    seconds: float | None = None
    target: str | None = None
    reached: float | None = None
    missed: bool = False
    front: bool | None = False
    reason: str = ""
    pace: str | None = None
    guesses: bool = False


@dataclass(frozen=True)
class Comparison:
    """Runs beside each other.

    Attributes:
        metric: what quality is.
        dense: quality of the dense model of the first run.
        runs: in the order in which they were given.
        warnings: why they may not be comparable, a sentence each.
        picture: quality against speed-up.
        points: per unit of the metric; 100 for shares, which are told in percent.
    """

    metric: str
    dense: float
    runs: tuple[Run, ...]
    warnings: tuple[str, ...]
    picture: Curve
    points: float = 100.0


def compared(reports: Mapping[str, Report], failed: Mapping[str, str]) -> Comparison:
    """The comparison of some reports, and of runs that came to none, with the reason.

    Raises:
        BadInput: runs of different metrics.
    """
    metrics = dict.fromkeys(r.result.quality.metric for r in reports.values() if r.result.quality)
    if len(metrics) > 1:
        raise BadInput(
            f"The runs were measured by {' and '.join(metrics)}; needed is one metric. Run them with the same --metric."
        )
    rows = [_run(name, report) for name, report in reports.items()]
    rows = [replace(row, front=_unbeaten(row, [other for other in rows if other is not row])) for row in rows]
    rows += [Run(name, name, reason=reason) for name, reason in failed.items()]
    first = next(iter(reports.values()), None)
    quality = first.dense.quality if first else None
    metric, dense, points = ("", 0.0, 100.0) if quality is None else (quality.metric, quality.value, quality.points)
    return Comparison(
        metric, dense, tuple(rows), (*_warnings(reports), *_misses(rows)), _picture(rows, metric, dense, points), points
    )


def _run(name: str, report: Report) -> Run:
    dense, result = report.dense, report.result
    latency, quality = result.latency, result.quality
    unit, asked = _asked(report.target)
    size = file_bytes(report)
    reached = {"params": result.params / dense.params, "macs": result.macs / dense.macs, "size": size}.get(unit)
    return Run(
        name,
        report.method,
        result.params / dense.params,
        result.macs / dense.macs,
        size,
        latency and latency.ratio,
        latency and latency.ci95,
        quality and quality.value,
        drop(dense.quality, quality) if quality and dense.quality else None,
        quality and quality.drop_ci95,
        round(sum(stage.seconds for stage in report.stages), 1),
        report.target,
        reached,
        reached is not None and abs(reached / asked - 1) > CLOSE,
        pace=latency and sentences.pace(latency.ci95, latency.noisy),
        guesses=sentences.at_chance(report) is not None,
    )


def _asked(target: str | None) -> tuple[str, float]:
    """Unit and amount of a target; nothing where there is none, or another version's."""
    try:
        return parse_target(target or "")
    except BadInput:
        return "", 1.0


def _equal(one: Run, other: Run) -> bool:
    """Whether two runs had the same budget, or had none in common."""
    if one.target != other.target or one.reached is None or other.reached is None or not (one.missed or other.missed):
        return True
    return abs(one.reached - other.reached) <= CLOSE * _asked(one.target)[1]


def _unbeaten(row: Run, others: Sequence[Run]) -> bool | None:
    def figures(one: Run) -> tuple[float, float]:
        return one.speed_up or 1.0, -(one.lost or 0.0)

    if row.guesses:
        return False
    mine, rivals = figures(row), [figures(other) for other in others if _equal(row, other) and not other.guesses]
    if others and not rivals:
        return None
    return not any(all(a >= b for a, b in zip(other, mine, strict=True)) and other != mine for other in rivals)


def _warnings(reports: Mapping[str, Report]) -> tuple[str, ...]:
    """What makes a comparison unfair, beside the first run, and which results are none."""
    names = list(reports)
    said = [f"{name}: {found}" for name, report in reports.items() if (found := sentences.at_chance(report)) is not None]
    for name in names[1:]:
        one, other = reports[names[0]], reports[name]
        if (one.dense.params, one.dense.macs) != (other.dense.params, other.dense.macs):
            said.append(f"{name} began with another model than {names[0]}.")
        elif one.dense.quality and other.dense.quality and one.dense.quality.value != other.dense.quality.value:
            said.append(f"{name} began with other weights than {names[0]}, or was measured on other data: {_beside(other, one)}.")
        if one.environment.cpu != other.environment.cpu or one.environment.gpu != other.environment.gpu:
            said.append(f"{name} was timed on another device than {names[0]}; its speed-up is over the dense model there.")
        if one.target != other.target:
            said.append(f"{name} had the target {other.target}, {names[0]} {one.target}.")
    return tuple(said)


def _beside(one: Report, other: Report) -> str:
    assert one.dense.quality and other.dense.quality
    found = sentences.quality(one.dense.quality), sentences.quality(other.dense.quality)
    return f"its dense model has {one.dense.quality.metric} {found[0]}, there {found[1]}"


def _misses(rows: Sequence[Run]) -> list[str]:
    """Which runs have another budget than they were asked for."""
    return [f"{row.run} came out at {_told(row)}, its target is {row.target}: more than 2 % off." for row in rows if row.missed]


def _told(row: Run) -> str:
    unit, reached = _asked(row.target)[0], row.reached or 0.0
    return f"{unit}={f'{reached / 1e6:.3g}MB' if unit == 'size' else f'{reached:.3g}'}"


def _picture(rows: Sequence[Run], metric: str, dense: float, points: float) -> Curve:
    there = [row for row in rows if row.quality is not None]
    at = {row.run: (row.speed_up or 1.0, points * (row.quality or 0.0)) for row in there}
    best = [row for row in there if row.front]
    front = sorted(at[row.run] for row in best)
    series = [Series(_called(row), *((v,) for v in at[row.run])) for row in there]
    if len(front) > 1 and all(_equal(*pair) for pair in combinations(best, 2)):
        series.append(Series(pictures.FRONT, tuple(x for x, _ in front), tuple(y for _, y in front)))
    levels = {"dense": points * dense} if there else {}
    return Curve("Quality against speed-up", "speed-up over the dense model", f"{metric}, points", tuple(series), levels)


def spans(found: Comparison) -> dict[str, pictures.Span]:
    """The intervals of every point of the picture: of its speed-up, and of its quality beside its own dense model."""
    made: dict[str, pictures.Span] = {}
    for row in found.runs:
        if row.quality is not None:
            lost, value = row.lost or 0.0, found.points * row.quality
            around = () if row.lost_ci95 is None else tuple(value + lost - end for end in row.lost_ci95)
            made[_called(row)] = (row.speed_up_ci95 or (), around)
    return made


def _called(row: Run) -> str:
    name = row.run if row.run == row.method else f"{row.run} ({row.method})"
    return f"{name}, at {_told(row)} for {row.target}" if row.missed else name


def cells(found: Comparison) -> list[tuple[str, ...]]:
    """What a table shows, in the order of `COLUMNS`."""

    def shown(value: Any, how: str, interval: tuple[float, float] | None = None, sign: float = 1) -> str:
        if value is None:
            return "-"
        around = "" if interval is None else " [" + ", ".join(format(v, how) for v in sorted(sign * v for v in interval)) + "]"
        return format(sign * value + 0.0, how) + around

    def mark(row: Run, unit: str) -> str:
        return MISSED if row.missed and _asked(row.target)[0] == unit else ""

    return [
        (
            row.run,
            row.method,
            shown(row.params, ".1%") + mark(row, "params"),
            shown(row.macs, ".1%") + mark(row, "macs"),
            "-" if row.file_bytes is None else sentences.size(row.file_bytes) + mark(row, "size"),
            shown(row.speed_up, ".2f", row.speed_up_ci95) + ("" if row.pace in (None, "faster", "slower") else UNCLAIMED),
            "-" if row.quality is None else sentences.figure(row.quality, found.metric, found.points),
            shown(row.lost, "+.2f", row.lost_ci95, -1),
            "-" if row.seconds is None else duration(row.seconds),
            "yes" if row.front else row.reason or ("-" if row.front is None else ""),
        )
        for row in found.runs
    ]


def legend(found: Comparison) -> list[str]:
    """What the mark in the table means, where it is there; for a terminal."""
    paces = "; ".join(f"{row.run} is {row.pace}" for row in found.runs if row.pace not in (None, "faster", "slower"))
    return [LEGEND] * any(row.missed for row in found.runs) + ([f"? supports no claim of speed: {paces}."] if paces else [])


def markdown(found: Comparison, picture: str | None) -> str:
    """The text of compare.md; `picture` is the file of the picture beside it."""
    parts = [
        "# Runs beside each other",
        grid(COLUMNS, cells(found)),
        *map(escape.markdown, legend(found)),
        bullets(found.warnings),
    ]
    parts += [f"![{found.picture.title}]({picture})"] if picture else []
    parts.append(
        "Parameters and MACs are shares of the dense model's. Speed-up is over each run's own dense model, timed in turns with "
        "it; 'Pareto front' marks runs that no other one beats in speed and quality together. Time is that of the stages alone."
    )
    return "\n\n".join(part for part in parts if part) + "\n"
