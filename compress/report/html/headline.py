"""The verdict in words, and the three figures that it rests on.

Good news needs all of it: contracts kept, a limit of the loss that somebody set, a model that does better than guessing, no
warning and no missing file. Everything else is told first as what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from compress.measure.intervals import beside_one
from compress.measure.points import drop
from compress.report import sentences
from compress.report.html.run_folder import UNFINISHED, RunFolder
from compress.report.html.view import Figure, Tone, Verdict
from compress.report.promise import kept
from compress.report.records import Latency, Outcome, Quality, Report, StageRecord
from compress.report.rules import Verdict as Verdicts
from compress.report.shipped import file_bytes

_BROKEN = {
    Outcome.NOT_EXACT: "Do not use this result: the smaller model is not the one that was decided on.",
    Outcome.QUALITY_LOST: "The result is worse than was allowed.",
    Outcome.EXPORT_LOST_QUALITY: "An exported file is worse than was allowed.",
    Outcome.EXPORT_NOT_EQUAL: "An exported file does not compute what the model computes.",
}
_TONES: Mapping[Verdicts, Tone] = {"pass": "good", "fail": "bad", "cannot tell": "unsure"}
UNLIMITED = "No limit was set for the loss of quality (--max-drop), so nothing was judged by one: look at the figures."


def verdict(run: RunFolder) -> Verdict:
    """Of a run that has a report, or of one that has none."""
    return _unfinished(run) if run.report is None else of_report(run.report)


def of_report(report: Report) -> Verdict:
    """The same of a report alone."""
    tone, headline, said = _judged(report)
    found = figures(report)
    if tone == "bad":
        # How fast and small something is that cannot be used is no good news.
        found = tuple(replace(one, tone="plain") if one.tone == "good" else one for one in found)
    return Verdict(tone, headline, tuple(said), found)


def figures(report: Report) -> tuple[Figure, ...]:
    """Quality, speed and size, in this order; what was not measured says so."""
    dense, result = report.dense, report.result
    return (
        _quality(dense.quality, result.quality, report),
        _speed(result.latency, report.large_batch),
        _size(dense, result, file_bytes(report)),
    )


def _unfinished(run: RunFolder) -> Verdict:
    done = ", ".join(stage.stage for stage in run.stages)
    said = [run.problem]
    said.append(
        f"Finished stages: {done}. Their figures stand below; none of them is the result of a run."
        if done
        else "No stage of it is finished, so there is nothing that was measured."
    )
    headline = "This run has no result." if run.problem.startswith(UNFINISHED) else "The report of this run cannot be used."
    return Verdict("bad", headline, tuple(said), ())


def _judged(report: Report) -> tuple[Tone, str, list[str]]:
    said = [report.verdict]
    if report.broken is not None or report.outcome is not Outcome.KEPT:
        return "bad", _BROKEN.get(report.outcome, "A contract of this run is broken."), said
    if (found := sentences.at_chance(report)) is not None:
        return "bad", found, [*_beside(report), *_undecided(report)]
    if report.result is report.dense or unchanged(report):
        return "unsure", "Nothing was changed: the result is the original model.", said
    if (lost := _gone(report)) is not None:
        return "bad", lost, _beside(report)
    doubts = _doubts(report)
    said = [*doubts, *said]
    smaller = _comparison(report)
    if doubts == [UNLIMITED]:
        return "unsure", f"{smaller} Whether its quality will do was not judged.", said
    if report.undecided:
        return "unsure", f"{smaller} Whether it kept --max-drop {report.max_drop:g} cannot be told.", said
    if doubts:
        return "unsure", f"{smaller} There are reasons for doubt.", said
    return "good", f"{smaller} It kept every limit that was set.", said


def _beside(report: Report) -> list[str]:
    """Both qualities, and that of guessing, where a verdict about what was reached would sound like a success."""
    before, after = report.dense.quality, report.result.quality
    guessing = "" if report.chance is None else f"; guessing reaches {100 * report.chance:.3g} %"
    if before is None or after is None:
        return []
    return [
        f"The original model has {before.metric} {sentences.quality(before)}, the result {sentences.quality(after)}{guessing}."
    ]


def _comparison(report: Report) -> str:
    """What the result is beside the dense model, in one sentence without numbers."""
    dense, result = report.dense, report.result
    words = "smaller" if file_bytes(report) < dense.file_bytes else "no smaller"
    if result.latency is None:
        return f"The result is {words} than the original model."
    pace = sentences.pace(result.latency.ci95, result.latency.noisy)
    if result.latency.noisy:
        return f"The result is {words} than the original model; its speed is {pace}."
    return f"The result is {words} and {pace} than the original model."


def _undecided(report: Report) -> list[str]:
    """Why nothing can be told of the limit of the loss, where one was set."""
    before, after, limit = report.dense.quality, report.result.quality, report.max_drop
    if before is None or after is None or limit is None:
        return []
    found = kept(before, after, limit, report.chance)
    return [found.said(after.metric, limit)] if found.verdict == "cannot tell" else []


def _doubts(report: Report) -> list[str]:
    """Why a result that kept its contracts is no plain success."""
    doubts: list[str] = []
    if report.result.quality is None or report.dense.quality is None:
        doubts.append("Quality was not measured, so nobody knows whether it still does its work.")
    elif report.max_drop is None:
        doubts.append(UNLIMITED)
    else:
        doubts += _undecided(report)
    if report.result.latency is not None and report.result.latency.verdict == "slower":
        doubts.append("It is slower than the original model where it was timed.")
    doubts += [f"No {failed.format} was written: {failed.reason}" for failed in report.failed_exports]
    # A run of this version warns of what stands among the doubts already.
    if more := [warning for warning in report.warnings if warning not in (*doubts, *report.asides)]:
        doubts.append(f"{len(more)} warning{'s make' if len(more) > 1 else ' makes'} the figures doubtful: {more[0]}")
    return doubts


def unchanged(report: Report) -> bool:
    """Whether every count of the result is that of the dense model, and its quality, too."""
    dense, result = report.dense, report.result
    same = (dense.params, dense.macs, dense.file_bytes) == (result.params, result.macs, result.file_bytes)
    return same and (dense.quality and dense.quality.value) == (result.quality and result.quality.value)


def _gone(report: Report) -> str | None:
    return sentences.gone(report.dense.quality, report.result.quality)


def _quality(dense: Quality | None, now: Quality | None, report: Report) -> Figure:
    if now is None:
        return Figure("Quality", "not measured", "", "", "unsure")
    value = f"{sentences.quality(now)} {now.metric}"
    if dense is None or dense.metric != now.metric:
        return Figure("Quality", value, "nothing to compare it with", "", "unsure", (now.value, None, None))
    lost, unit = drop(dense, now), " points" if now.points == 100 else sentences.UNITS.get(now.metric, "")
    beside = f"the original model has {sentences.quality(dense)}: {_worse(lost, unit)}"
    ends = now.drop_ci95
    interval = (
        "the report holds no interval of the difference"
        if ends is None
        else f"95 % interval of the difference: {_signed(ends[1], unit)} to {_signed(ends[0], unit)}"
    )
    limit = report.max_drop
    tone: Tone = "plain" if limit is None else _TONES[kept(dense, now, limit, report.chance).verdict]
    if sentences.at_chance(report) is not None or report.outcome is Outcome.QUALITY_LOST or _gone(report) is not None:
        tone = "bad"
    return Figure("Quality", value, beside, interval, tone, (now.value, *ends) if ends is not None else (now.value, None, None))


def _signed(lost: float, unit: str) -> str:
    return f"{-lost + 0.0:+.2f}{unit}"


def _worse(lost: float, unit: str) -> str:
    return "the same" if abs(lost) < 0.005 else f"{abs(lost):.2f}{unit} {'worse' if lost > 0 else 'better'}"


def _speed(now: Latency | None, many: Latency | None = None) -> Figure:
    if now is None:
        return Figure("Speed", "not measured", "", "", "unsure")
    numbers = (now.ratio, *now.ci95)
    low, high = now.ci95
    why = f"; {sentences.unsteady(now)}" if now.noisy else ", which holds 1" if now.verdict == "cannot tell" else ""
    interval = f"95 % interval: {beside_one(low)} to {beside_one(high)} times{why}"
    if many is not None:
        interval += f"; in batches of {many.batch} {sentences.speed_up(many)}: {sentences.pace(many.ci95, many.noisy)}"
    where = f"{now.runtime}, batch {now.batch}, {now.threads} thread{'' if now.threads == 1 else 's'}"
    called = f"{now.p50_ms:.3g} ms a call, the original model {sentences.dense_ms(now):.3g} ms in the same rounds ({where})"
    match now.verdict:
        case "faster":
            return Figure("Speed", f"{now.ratio:.2f} times as fast", called, interval, "good", numbers)
        case "slower":
            return Figure("Speed", f"slower: {now.ratio:.2f} times as fast", called, interval, "bad", numbers)
        case _:
            return Figure("Speed", sentences.pace(now.ci95, now.noisy), called, interval, "unsure", numbers)


def _size(dense: StageRecord, now: StageRecord, shipped: int) -> Figure:
    smaller = shipped < dense.file_bytes
    value = f"{sentences.times(dense.file_bytes, shipped)} smaller" if smaller else "not smaller"
    beside = (
        f"file {sentences.size(dense.file_bytes)} to {sentences.size(shipped)}; "
        f"MACs {sentences.count(dense.macs)} to {sentences.count(now.macs)} ({sentences.times(dense.macs, now.macs)} fewer)"
    )
    ratio = dense.file_bytes / shipped if shipped else None
    return Figure(
        "Size",
        value.replace("x", " times"),
        beside,
        "counted, so there is no interval",
        "good" if smaller else "unsure",
        (ratio, None, None),
    )
