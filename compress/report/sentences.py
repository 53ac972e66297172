"""Figures as people read them, and the sentences that may be said about a run.

A speed-up is only claimed where its confidence interval lies beside 1 and the rounds were steady; `pace` has the words for each
of the four outcomes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from compress.measure.intervals import beside_one
from compress.measure.points import drop
from compress.report.records import Broken, Latency, Outcome, QatRecord, Quality, Report, StageRecord
from compress.report.shipped import file_bytes
from compress.user.wording import many
from exporters.standalone.machine import LEAST_CALM

UNITS = {"psnr": " dB"}
"""Metric -> unit, where it has one; a metric with 100 points per unit is a share, written in percent."""


KEPT_ALL_THE_SAME = {
    Outcome.NOT_EXACT: "holds the report; please report this model's structure.",
    Outcome.QUALITY_LOST: "holds the model and the report; allow more, or train longer (--epochs).",
    Outcome.EXPORT_LOST_QUALITY: "holds everything else, and the report.",
    Outcome.EXPORT_NOT_EQUAL: "holds everything else, and the report.",
}
"""What a broken contract leaves, behind the name of the folder."""

WITHOUT_CHECKPOINT = (
    "The exported files and plan.json hold the result; to go on in torch, change that part of the model and run again."
)


def count(n: float) -> str:
    """11689512 -> 11.69 M."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if n >= factor:
            return f"{n / factor:.4g}{unit}"
    return f"{n:.0f}"


def size(n: float) -> str:
    """57500000 -> 57.5 MB; decimal units, as files are sold."""
    return f"{count(n)}B" if n >= 1e3 else f"{n:.0f} B"


def speed_up(latency: Latency) -> str:
    """1.83x [1.79, 1.88], and `?` behind what supports no claim: an interval that holds 1, or noise."""
    low, high = latency.ci95
    return f"{latency.ratio:.2f}x [{beside_one(low)}, {beside_one(high)}]" + (" ?" if latency.verdict == "cannot tell" else "")


def dense_ms(latency: Latency) -> float:
    """Median of the dense model in the same rounds; that of other rounds says as much about the machine as about the models."""
    return statistics.median(latency.dense_rounds_ms) if latency.dense_rounds_ms else latency.p50_ms * latency.ratio


_HALF = 0.5
"""Of the dense model's quality: whoever is left with less has no use for it, whether a limit was set or not."""
TOO_NOISY = "too noisy to tell"


def pace(ci95: tuple[float, float], noisy: bool) -> str:
    """What may be said of a speed-up over the dense model: faster, slower, neither, or nothing."""
    if noisy:
        return f"{TOO_NOISY}, slower in these rounds" if ci95[1] < 1 else TOO_NOISY
    return "faster" if ci95[0] > 1 else "slower" if ci95[1] < 1 else "not measurably faster or slower"


def quality(q: Quality) -> str:
    """The value: a share in percent, anything else in its unit."""
    return figure(q.value, q.metric, q.points)


def figure(value: float, metric: str, points: float) -> str:
    """The same of a figure that stands alone."""
    return f"{100 * value:.2f} %" if points == 100 else f"{value:.4g}{UNITS.get(metric, '')}"


def change(dense: Quality, now: Quality) -> str:
    """The drop with its sign turned to what people expect: -0.42 is 0.42 points worse."""
    return f"{-drop(dense, now) + 0.0:+.2f}{UNITS.get(now.metric, '')}"


def times(dense: float, now: float) -> str:
    """3.9x smaller -> '3.9x'."""
    return f"{dense / now:.3g}x" if now else "-"


def sentences(report: Report) -> list[str]:
    """What the result is beside the dense model, one plain sentence per fact."""
    dense, result, shipped = report.dense, report.result, file_bytes(report)
    said = [
        f"{times(dense.params, result.params)} fewer parameters ({count(dense.params)} -> {count(result.params)}), "
        f"{times(dense.macs, result.macs)} fewer multiply-accumulates ({count(dense.macs)} -> {count(result.macs)}), "
        f"{times(dense.file_bytes, shipped)} smaller file ({size(dense.file_bytes)} -> {size(shipped)})."
    ]
    if result.latency is not None:
        said.append(_latency(result.latency))
    if report.large_batch is not None:
        said.append(_latency(report.large_batch))
    if result.quality is not None:
        said.append(_quality(dense.quality, result.quality))
    if (guessed := at_chance(report)) is not None:
        said.append(guessed)
    said += exports(report)
    if report.exactness is not None:
        e = report.exactness
        said.append(
            f"Channels removed {'equal' if e.holds else 'do NOT equal'} channels masked, and layers merged the layers they "
            f"replace: worst difference {e.worst_abs:.2g}, allowed {e.tolerance:.2g}, on {many(e.samples, 'sample')}, before any "
            "weight was refitted."
        )
    return said


def exports(report: Report) -> list[str]:
    """What has to be known of the files: quality of those with fewer bits, layers in float, formats that failed."""
    said: list[str] = []
    for export in report.exports:
        if export.quality is not None:
            close, result = export.closeness, report.result.quality
            agreement = "" if close is None or close.agreement is None else f" (same class as in torch on {close.agreement:.2%})"
            lost = "" if result is None else f", {change(result, export.quality)} beside the model in float"
            said.append(f"{export.path}: {export.quality.metric} {quality(export.quality)}{lost}{agreement}.")
        if export.qat is not None:
            said.append(_qat(export.path, export.qat))
        if export.kept_float:
            said.append(f"{export.path} keeps {many(len(export.kept_float), 'layer')} in float: {', '.join(export.kept_float)}.")
    return said + [f"No {failed.format} was written: {failed.reason}" for failed in report.failed_exports]


def _qat(path: str, of: QatRecord) -> str:
    first = f"{path}: with calibrated ranges alone its {of.before.metric} was {quality(of.before)}, less than --max-drop allows"
    if of.after is None:
        return f"{first}; training with its rounding in place failed: {of.reason}"
    better, worse = "that file stays, with weights that are not those of the model", "no better, so the first file stays"
    after = f"{of.epochs:g} epoch{'' if of.epochs == 1 else 's'}"
    return f"{first}; after {after} with its rounding in place {quality(of.after)}: {better if of.stays else worse}."


def broken(contract: Broken) -> str:
    """Which contract failed, with its figures."""
    match contract.outcome:
        case Outcome.NOT_EXACT:
            return (
                f"The model without the removed channels differs from the masked one by {contract.lost:.2g}, "
                f"more than {contract.allowed:.2g}."
            )
        case Outcome.EXPORT_NOT_EQUAL:
            return f"The export {contract.export} failed: {contract.reason}"
        case _:
            what = "The result" if contract.export is None else f"The export {contract.export}"
            if contract.reason:
                return f"{what}: {contract.reason}"
            unit = "points" if contract.points == 100 else "units"
            between = "" if contract.ci95 is None else f"[{contract.ci95[0]:.2f}, {contract.ci95[1]:.2f}] "
            return (
                f"{what} loses {contract.lost:.2f} {between}{unit} of {contract.metric}, more than --max-drop "
                f"{contract.allowed:g} allows."
            )


def reached(first: StageRecord, last: StageRecord, chance: float | None = None, doubtful: bool = False) -> str:
    """What a run that kept its contracts came to; `chance`: the quality of guessing, `doubtful`: the run warns of its figures."""
    assert first.quality is not None and last.quality is not None
    guessed = (
        f"The result is {NO_BETTER} ({100 * chance:.3g} %): " if chance is not None and guesses(last.quality, chance) else ""
    )
    speed = f"latency {last.latency.ratio:.2f}x ({pace(last.latency.ci95, last.latency.noisy)})" if last.latency else "not timed"
    if not guessed and (most := gone(first.quality, last.quality)):
        guessed = f"{most[:-1]}: "
    doubt = "Doubtful, see the warnings: " if doubtful and not guessed else ""
    few = chance is not None and _above(first.quality, chance) >= 1
    lost = f"too few samples ({last.quality.samples}) to tell" if few else change(first.quality, last.quality)
    return (
        f"{doubt}{guessed}{first.params / last.params:.2f}x fewer parameters, {first.macs / last.macs:.2f}x fewer MACs, {speed}, "
        f"{last.quality.metric} {lost}."
    )


def trained(before: Quality, after: Quality, teacher: Quality | None) -> list[str]:
    """What training did to the quality on the test data, and where that is beside the teacher."""
    low, high = after.drop_ci95 or (0.0, 0.0)
    # The interval is of points lost; read here as gained.
    between = "" if after.drop_ci95 is None else f" [{-high + 0.0:+.2f}, {-low + 0.0:+.2f}]"
    told = "" if after.drop_ci95 is None or low > 0 or high < 0 else "; the interval holds 0, so no change can be claimed"
    said = [
        f"{after.metric} on {many(after.samples, 'test sample')}: {quality(before)} before training, {quality(after)} after "
        f"({change(before, after)}{between}{told})."
    ]
    if teacher is not None and teacher.metric == after.metric:
        said.append(f"The teacher has {quality(teacher)}: the trained model is {change(teacher, after)} beside it.")
    return said


def kept_before(stages: Sequence[StageRecord], last: int) -> str:
    """Which stage was the last to keep the allowed drop that the result does not keep."""
    dense, kept, broke = stages[0], stages[last], stages[last + 1]
    assert dense.quality is not None and kept.quality is not None
    return (
        f"After stage '{kept.stage}' the model still kept the allowed drop: {kept.quality.metric} {quality(kept.quality)} "
        f"({change(dense.quality, kept.quality)}), {kept.macs / dense.macs:.0%} of the MACs; stage '{broke.stage}' broke it."
    )


GUESSED = {"top1": 1, "top5": 5}
"""Metric -> how many answers to a sample it takes, where guessing them comes to a figure that is known."""


def chance_of(quality: Quality | None, classes: Sequence[str] | None) -> float | None:
    """What guessing comes to: the k best of c classes hold the right one with k / c; None where that cannot be told."""
    best = GUESSED.get(quality.metric) if quality is not None else None
    return None if best is None or not classes or best >= len(classes) else best / len(classes)


def guesses(found: Quality, chance: float) -> bool:
    """No better than chance: two standard errors above it still count as that, where so many samples can tell."""
    above = _above(found, chance)
    return above < 1 and found.value <= above


def _above(found: Quality, chance: float) -> float:
    """From here on somebody who guesses would hardly be right so often; 1 and more with a few samples."""
    return chance + 2 * math.sqrt(chance * (1 - chance) / max(found.samples, 1))


NO_BETTER = "no better than guessing"


def at_chance(report: Report) -> str | None:
    """What to say where a model only guesses; None where none does, or nobody can tell."""
    for stage, words in ((report.result, "The result is"), (report.dense, "Already the original model is")):
        if stage.quality is not None and report.chance is not None and guesses(stage.quality, report.chance):
            return f"{words} {NO_BETTER}."
    # Older reports hold no chance, but said so of the dense model.
    if any(NO_BETTER in warning for warning in report.warnings):
        return f"Already the original model is {NO_BETTER}."
    return None


def gone(before: Quality | None, after: Quality | None) -> str | None:
    """That less than half of what is better high is left; None where more is, or where samples or the metric cannot say so."""
    if after is not None and after.drop_ci95 is not None and after.drop_ci95[0] <= 0:
        return None
    if before is None or after is None or before.metric != after.metric or not before.higher_is_better:
        return None
    return "Most of the quality is gone." if before.value > 0 and after.value < _HALF * before.value else None


def doubtful(report: Report) -> tuple[str, ...]:
    """What whoever takes a result has to know first: that it is of no use, or that its figures may mean nothing."""
    useless = at_chance(report) or gone(report.dense.quality, report.result.quality)
    return tuple(dict.fromkeys((*((useless,) if useless else ()), *report.warnings)))


def untold(dense: Quality, now: Quality, chance: float | None) -> str | None:
    """Why a loss beside the dense model says nothing, however small it is; None where nothing speaks against it."""
    if chance is None:
        return None
    if _above(dense, chance) >= 1:
        return _too_few(dense)
    if guesses(dense, chance):
        return (
            f"the dense model itself is {NO_BETTER} on this data ({quality(dense)}, guessing {100 * chance:.3g} %), so the "
            "labels, their order or the preprocessing are probably not those of its training"
        )
    return f"the result is {NO_BETTER} ({100 * chance:.3g} %)" if guesses(now, chance) else None


def _too_few(dense: Quality) -> str:
    are = "is" if dense.samples == 1 else "are"
    return f"{many(dense.samples, 'test sample')} {are} too few to tell even a model that is always right from one that guesses"


def guessing(dense: Quality | None, classes: Sequence[str] | None) -> str | None:
    """What to say where the dense model is no better than guessing."""
    chance = chance_of(dense, classes)
    if dense is None or chance is None or classes is None:
        return None
    if _above(dense, chance) >= 1:
        return f"Of {len(classes)} classes {_too_few(dense)}: give more."
    if not guesses(dense, chance):
        return None
    return (
        f"The dense model's {dense.metric} of {quality(dense)} is {NO_BETTER} among {len(classes)} classes "
        f"({100 * chance:.2g} %): wrong normalization (mean and std in a data.toml), class order, or weights?"
    )


def unsteady(latency: Latency) -> str:
    """Why the rounds of a noisy latency support no claim."""
    if latency.calm < LEAST_CALM:
        return f"other processes took the cores in {1 - latency.calm:.0%} of its rounds"
    return "its rounds scatter too much for any claim"


def _latency(now: Latency) -> str:
    low, high = now.ci95
    where = f"in {now.runtime} with batch {now.batch} on {now.threads} thread{'' if now.threads == 1 else 's'}"
    interval = f"{now.p50_ms:.3g} ms a call; 95 % confidence interval {beside_one(low)} to {beside_one(high)}"
    match now.verdict:
        case "faster":
            return f"{now.ratio:.2f}x faster {where} ({interval})."
        case "slower":
            return f"Slower {where}: {now.ratio:.2f}x the speed of the dense model ({interval})."
        case _:
            told, why = pace(now.ci95, now.noisy).capitalize(), f": {unsteady(now)}" if now.noisy else ""
            return f"{told} {where}{why} (speed-up {now.ratio:.2f}, {interval}{'' if now.noisy else ' holds 1'})."


def _quality(dense: Quality | None, now: Quality) -> str:
    value = f"{now.metric} {quality(now)} on {many(now.samples, 'sample')}"
    if dense is None or dense.metric != now.metric:
        return f"{value}."
    lost = drop(dense, now)
    unit = " points" if now.points == 100 else UNITS.get(now.metric, "")
    beside = "the same as" if abs(lost) < 0.005 else f"{abs(lost):.2f}{unit} {'worse' if lost > 0 else 'better'} than"
    return f"{value}: {beside} the dense model's {quality(dense)}."
