"""Rules that a result has to keep, and the verdict on each.

    pass           the whole interval of what was found lies on the right side of the limit
    fail           the whole interval lies on the wrong side
    cannot tell    the limit lies inside the interval, or nothing is known of how wide it is

A loss of quality never passes where the dense model or the result only guesses: of nothing, nothing can be lost.
What was counted (sizes, parameters, multiply-accumulates) has an interval of no width and is never in doubt.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from compress.errors import BadInput
from compress.measure import points
from compress.measure.intervals import Interval
from compress.measure.units import BYTES, COUNTS, SHARES, amount
from compress.report import sentences
from compress.report.baseline import Baseline
from compress.report.changes import FIGURES, Side, change, drop, speed_up
from compress.report.records import Latency, Quality

HARDLY = 0.1
"""Points of a share below which a limit was probably meant as a fraction."""
Verdict = Literal["pass", "fail", "cannot tell"]


@dataclass(frozen=True)
class Ruling:
    """One rule and what came of it.

    Attributes:
        rule: as it was given, such as "max-drop".
        verdict: see the module docstring.
        found: the figure and its interval in words.
        limit: what was allowed, in words.
        value: the figure; None where it cannot be told.
        low: lower end of its 95 % interval.
        high: upper end.
        reason: why nothing can be told; empty where the interval says it.
    """

    rule: str
    verdict: Verdict
    found: str
    limit: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


def judged(rule: str, found: Interval, limit: float, unit: str, *, least: bool = False, digits: int = 2) -> Ruling:
    """The verdict on a figure that must not exceed its limit, or with `least` must reach it."""
    _refuse_endless(rule, limit)
    ends = (found.high, found.low) if not least else (-found.low, -found.high)  # the worse end, the better end
    bound = -limit if least else limit
    verdict: Verdict = "pass" if ends[0] <= bound else "fail" if ends[1] > bound else "cannot tell"
    text = f"{found.value:.{digits}f}{unit}"
    if found.low != found.high:
        text += f" [{found.low:.{digits}f}, {found.high:.{digits}f}]"
    allowed = f"at {'least' if least else 'most'} {limit:.{digits}f}{unit}"
    reason = "the limit lies inside the interval" if verdict == "cannot tell" else ""
    return Ruling(rule, verdict, text, allowed, found.value, found.low, found.high, reason)


def _refuse_endless(rule: str, limit: float) -> None:
    # A variable of a CI server that became "nan" would switch the rule off.
    if not math.isfinite(limit):
        raise BadInput(f"The limit of {rule} is {limit:g}, which no figure could break. Give a number.")


def unknown(rule: str, found: str, limit: str, reason: str) -> Ruling:
    """Nothing can be told."""
    return Ruling(rule, "cannot tell", found, limit, reason=reason)


def telling(ruling: Ruling, dense: Quality | None, now: Quality | None, chance: float | None) -> Ruling:
    """The verdict on a loss of quality, which can only be told of models that know something."""
    if ruling.verdict == "fail" or dense is None or now is None or not (reason := sentences.untold(dense, now, chance)):
        return ruling
    return replace(ruling, verdict="cannot tell", reason=reason)


def max_drop(at: Side, limit: float) -> Ruling:
    """Points of quality lost beside the dense model."""
    if limit < 0:
        raise BadInput(f"--max-drop is {limit:g}; needed are points that may be lost, 0 or more: 1 allows 91 % for 92 %.")
    dense, now = at.dense.quality, at.now.quality
    if dense is None or now is None or dense.metric != now.metric:
        raise BadInput("--max-drop asks for a loss of quality, and the report has none. Measure it: run again with --data.")
    found = drop(at)
    unit = " points" if now.points == 100 else sentences.UNITS.get(now.metric, "")
    if found is None:
        lost = f"{points.drop(dense, now):.2f}{unit}"
        return unknown("max-drop", lost, f"at most {limit:.2f}{unit}", "the report holds no interval of the loss: run again")
    return telling(judged("max-drop", found, limit, unit), dense, now, at.chance)


def understood(at: Side, limit: float | None) -> str | None:
    """What a `--max-drop` stands for that looks like a fraction; None where it does not."""
    now = at.now.quality
    if limit is None or now is None or now.points != 100 or not 0 < limit < HARDLY:
        return None
    points = f"{100 * limit:g}"
    return f"--max-drop {limit:g} was taken as {limit:g} of 100 points; for {points} of them give --max-drop {points}."


def min_speedup(at: Side, limit: float) -> Ruling:
    """Times as fast as the dense model."""
    if limit <= 0:
        raise BadInput(f"--min-speedup is {limit:g}; needed is a factor above 0, such as 1.5.")
    if at.now.latency is None:
        raise BadInput("--min-speedup asks for a latency, and the report has none. Run again with a --runtime that is at hand.")
    if at.now.latency.noisy:
        return unknown(
            "min-speedup",
            f"{at.now.latency.ratio:.2f}x",
            f"at least {limit:.2f}x",
            _unsteady(at.now.latency),
        )
    return judged("min-speedup", speed_up(at.now.latency), limit, "x", least=True)


def max_latency(at: Side, limit: float) -> Ruling:
    """Milliseconds of one call."""
    if limit <= 0:
        raise BadInput(f"--max-latency is {limit:g}; needed are milliseconds above 0.")
    latency = at.now.latency
    if latency is None:
        raise BadInput("--max-latency asks for a latency, and the report has none. Run again with a --runtime that is at hand.")
    if latency.p50_ci95_ms is None or latency.noisy:
        why = _unsteady(latency) if latency.noisy else "the report holds no interval of the time: run again"
        return unknown("max-latency", f"{latency.p50_ms:.3f} ms", f"at most {limit:.3f} ms", why)
    return judged("max-latency", Interval(latency.p50_ms, *latency.p50_ci95_ms), limit, " ms", digits=3)


def _unsteady(latency: Latency) -> str:
    return f"{sentences.TOO_NOISY}: {sentences.unsteady(latency)}; retry on an idle machine"


def max_size(at: Side, limit: str | float) -> Ruling:
    """Bytes of the result's file, such as 6.5MB."""
    allowed = amount(str(limit), BYTES)
    if not allowed:
        raise BadInput(f"--max-size is '{limit}'; needed is a size such as 6.5MB, 800KB or 2MiB.")
    ruling = _counted("max-size", at.now.file_bytes, allowed, "B")
    return replace(ruling, found=f"{ruling.found} ({at.file})") if at.file else ruling


def max_macs(at: Side, limit: str | float) -> Ruling:
    """Multiply-accumulates: a number such as 1.2G, or a share of the dense model's."""
    return _share_or_count("max-macs", at.now.macs, at.dense.macs, limit)


def max_params(at: Side, limit: str | float) -> Ruling:
    """Parameters: a number such as 1.5M, or a share of the dense model's."""
    return _share_or_count("max-params", at.now.params, at.dense.params, limit)


def _share_or_count(rule: str, found: int, dense: int, limit: str | float) -> Ruling:
    share = amount(str(limit), SHARES)
    if share is not None and 0 < share <= 1:
        if not dense:
            raise BadInput(f"--{rule} {limit} is a share of the dense model, which has none. Give a number.")
        ruling = judged(rule, Interval.exact(100 * found / dense), 100 * share, " % of dense")
        return replace(ruling, value=found / dense, low=found / dense, high=found / dense)
    allowed = amount(str(limit), COUNTS)
    if not allowed:
        raise BadInput(
            f"--{rule} is '{limit}'; needed is a number such as 1.2G, or a share of the dense model such as 0.5 or 50%."
        )
    return _counted(rule, found, allowed, "")


def _counted(rule: str, found: int, allowed: float, unit: str) -> Ruling:
    _refuse_endless(rule, allowed)
    verdict: Verdict = "pass" if found <= allowed else "fail"
    text, limit = (sentences.count(n) + unit if n >= 1e3 or not unit else f"{n:.0f} {unit}" for n in (found, allowed))
    return Ruling(rule, verdict, text, f"at most {limit}", found, found, found)


def tolerance(at: Side, baseline: Baseline, text: str) -> Ruling:
    """A figure beside the baseline's: `latency=5%` may be that much slower, `quality=0.5` lose as many points."""
    figure, _, allowed = (part.strip() for part in text.partition("="))
    if figure not in FIGURES or not allowed:
        raise BadInput(f"--tolerance is '{text}'; needed is FIGURE=PERCENT such as latency=5%, of {', '.join(FIGURES)}.")
    limit = 0.0 if allowed.rstrip("%") in ("0", "0.0") else amount(allowed.rstrip("%"), {"": 1.0})
    if limit is None or (figure == "quality") == allowed.endswith("%"):
        raise BadInput(
            f"--tolerance is '{text}'; needed is quality=POINTS."
            if figure == "quality"
            else f"--tolerance is '{text}'; needed is a percentage of the baseline, such as {figure}=5%."
        )
    baseline.require(figure)
    found = change(figure, baseline.side, at)
    if found.new is None:
        raise BadInput(f"--tolerance {text} asks for a {figure}, and the report has none. Run again so that it is measured.")
    unit = " points" if figure == "quality" else " %"
    if found.change is None:
        return unknown(
            f"tolerance {figure}", f"{found.old:.4g} -> {found.new:.4g}", f"at most {limit:g}{unit} worse", found.reason
        )
    ruling = judged(f"tolerance {figure}", found.change, limit, unit)
    if figure == "quality":
        ruling = telling(ruling, at.dense.quality, at.now.quality, at.chance)
    return replace(ruling, found=f"{ruling.found} worse", limit=f"at most {limit:g}{unit} worse")
