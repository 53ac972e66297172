"""One result beside an earlier one: every figure's change, with the interval that it can be known with.

A latency is compared by its speed-up over the dense model, which each run timed in turns with it: the milliseconds of two runs
were taken at different times, and say as much about the machine as about the model. That needs the same dense model, processor,
runtime, batch and threads; where one of them differs the change cannot be told.
Quality: where the dense model and the test data are the same, the change is the difference of the two drops, each a paired
interval; else the difference of two shares of unrelated samples. That is wider than need be, never too narrow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from compress.errors import BadInput
from compress.measure import points
from compress.measure.intervals import Interval, difference, ratio, share
from compress.report import sentences
from compress.report.records import Environment, Latency, Quality, Report, StageRecord
from compress.report.shipped import FORMAT, file_bytes, shipped

TIMED = FORMAT
"""The export whose times are those of the stages."""


@dataclass(frozen=True)
class Side:
    """A stage of a run, the dense model beside it, and where both were measured.

    `file` is the one whose size that is, `chance` the quality of guessing on the test data, where the report has it.
    """

    dense: StageRecord
    now: StageRecord
    environment: Environment
    file: str = ""
    chance: float | None = None


@dataclass(frozen=True)
class Change:
    """How a figure moved; above 0 is worse. In percent of the old value, quality in points.

    Attributes:
        figure: a name in `FIGURES`.
        old: as it was; None where it was not measured.
        new: as it is.
        change: None where it cannot be told, for the reason that stands beside it.
    """

    figure: str
    old: float | None
    new: float | None
    change: Interval | None
    reason: str = ""


def side(report: Report, stage: StageRecord | None = None) -> Side:
    """One side of a comparison: the result with the size of what is shipped, where no stage is named."""
    if stage is not None or (found := shipped(report)) is None:
        return Side(report.dense, stage or report.result, report.environment, chance=report.chance)
    now = report.result.model_copy(update={"file_bytes": file_bytes(report)})
    return Side(report.dense, now, report.environment, found.path, report.chance)


def exported(report: Report, format: str) -> Side:
    """The file of an export in the place of the result: its size, its own quality where that was measured; nobody timed it.

    Raises:
        BadInput: the report has no such export.
    """
    found = next((export for export in report.exports if export.format == format), None)
    if found is None:
        failed = next((f" (it failed: {f.reason})" for f in report.failed_exports if f.format == format), "")
        names = ", ".join(export.format for export in report.exports) or "none"
        raise BadInput(f"The report has no export '{format}'{failed}; it has {names}. Run again with --export {format}.")
    own: dict[str, object] = {"stage": format}
    own |= {} if found.bytes is None else {"file_bytes": found.bytes}
    own |= {} if found.quality is None else {"quality": found.quality}
    own |= {} if format == TIMED else {"latency": None}
    return Side(report.dense, report.result.model_copy(update=own), report.environment, found.path, report.chance)


def change(figure: str, old: Side, new: Side) -> Change:
    """The change of one figure."""
    return FIGURES[figure](figure, old, new)


def _counted(field: str) -> Callable[[str, Side, Side], Change]:
    def compare(figure: str, old: Side, new: Side) -> Change:
        before, after = getattr(old.now, field), getattr(new.now, field)
        if not before:
            return Change(figure, before, after, Interval.exact(0.0) if not after else None, "it was 0")
        return Change(figure, before, after, Interval.exact(100 * (after / before - 1)))

    return compare


def _latency(figure: str, old: Side, new: Side) -> Change:
    before, after = old.now.latency, new.now.latency
    if before is None or after is None:
        return Change(figure, before and before.p50_ms, after and after.p50_ms, None, "it was not timed in both")
    reason = _not_comparable(old, new, before, after)
    if reason:
        return Change(figure, before.p50_ms, after.p50_ms, None, reason)
    slower = ratio(speed_up(before), speed_up(after)).times(100)
    return Change(figure, before.p50_ms, after.p50_ms, Interval(slower.value - 100, slower.low - 100, slower.high - 100))


def _not_comparable(old: Side, new: Side, before: Latency, after: Latency) -> str:
    """Why two latencies say nothing about each other; empty where they do."""
    if old.environment.cpu != new.environment.cpu or old.environment.gpu != new.environment.gpu:
        return f"timed on another device ({old.environment.gpu or old.environment.cpu})"
    for what in ("runtime", "batch", "threads"):
        if getattr(before, what) != getattr(after, what):
            return f"timed with another {what} ({getattr(before, what)}, now {getattr(after, what)})"
    if before.noisy or after.noisy:
        return f"{sentences.TOO_NOISY}: {next(sentences.unsteady(one) for one in (before, after) if one.noisy)}"
    if (old.dense.params, old.dense.macs) != (new.dense.params, new.dense.macs):
        return "timed beside another dense model"
    return ""


def speed_up(latency: Latency) -> Interval:
    """Over the dense model."""
    return Interval(latency.ratio, *latency.ci95)


def _quality(figure: str, old: Side, new: Side) -> Change:
    before, after = old.now.quality, new.now.quality
    values = (before and before.value, after and after.value)
    if before is None or after is None or before.metric != after.metric:
        return Change(figure, *values, None, "it was not measured by the same metric in both")
    if before == after and same_measurement(old.dense.quality, new.dense.quality):
        return Change(figure, *values, Interval.exact(0.0))  # to the last digit of the interval: nothing has changed
    worse = points.drop(before, after)
    drops = drop(old), drop(new)
    if same_measurement(old.dense.quality, new.dense.quality) and drops[0] is not None and drops[1] is not None:
        return Change(figure, *values, difference(drops[1], drops[0]))
    if after.points == 100 and after.higher_is_better and 0 <= before.value <= 1 and 0 <= after.value <= 1:
        return Change(
            figure, *values, difference(share(before.value, before.samples), share(after.value, after.samples)).times(100)
        )
    return Change(figure, *values, None, f"{worse:+.3g} beside another dense model, without an interval")


def same_measurement(old: Quality | None, new: Quality | None) -> bool:
    """Of the same model on the same data, as far as a report tells."""
    return old is not None and new is not None and (old.metric, old.value, old.samples) == (new.metric, new.value, new.samples)


def drop(at: Side) -> Interval | None:
    """Points lost beside the dense model; None where the report holds no interval of them, or no quality."""
    dense, now = at.dense.quality, at.now.quality
    if dense is None or now is None or dense.metric != now.metric:
        return None
    lost = points.drop(dense, now)
    same = {name: getattr(at.dense, name) for name in ("stage", "seconds", "file_bytes")}
    if at.now.model_copy(update=same) == at.dense:
        return Interval.exact(0.0)  # a stage that only looked
    return None if now.drop_ci95 is None else Interval(lost, *now.drop_ci95)


FIGURES: dict[str, Callable[[str, Side, Side], Change]] = {
    "latency": _latency,
    "quality": _quality,
    "size": _counted("file_bytes"),
    "params": _counted("params"),
    "macs": _counted("macs"),
    "memory": _counted("peak_memory_bytes"),
}
"""What two results are compared by."""
