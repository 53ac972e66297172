"""`compress gate`: does the report of a run keep the rules that a project set? For CI: quick, and red only for a reason.

A rule is kept where the whole 95 % interval of what was measured is on the right side of its limit, not where the point is.
Where the interval holds the limit the verdict is "cannot tell", and `on_noise` says what becomes of it: by default such a
`max_drop` passes, as it does in the run itself, so that the two agree about one report, and any other rule fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compress.commands.outputs import apart, write_text
from compress.errors import BadInput
from compress.pipeline.own_files import run_of
from compress.report import baseline as baselines
from compress.report import records, rules, rulings, sealed, sentences
from compress.report.changes import exported, side
from compress.report.records import Outcome
from compress.report.rules import Ruling
from compress.report.summary_picture import stages_picture
from compress.user import files

Noise = Literal["pass", "fail"]


@dataclass(frozen=True)
class Gate:
    """What a gate found.

    Attributes:
        passed: every rule is kept, or cannot be told where `on_noise` lets that pass.
        rules: the verdict on each.
        updated: the baseline that was written; None where none was asked for, or a rule is broken.
        notes: that the model only guesses; how a limit was understood; what the run warned of; what could not be looked for in
            the files that were read.
    """

    passed: bool
    rules: tuple[Ruling, ...]
    updated: str | None = None
    notes: tuple[str, ...] = ()


def gate(
    report: str | Path,
    *,
    max_drop: float | None = None,
    min_speedup: float | None = None,
    max_latency: float | None = None,
    max_size: str | float | None = None,
    max_macs: str | float | None = None,
    max_params: str | float | None = None,
    baseline: str | Path | None = None,
    tolerance: str | Sequence[str] = (),
    update_baseline: bool = False,
    export: str | None = None,
    on_noise: Noise | None = None,
    junit: str | Path | None = None,
    markdown: str | Path | None = None,
) -> Gate:
    """Judge the report of a run. Nothing is measured again.

    Args:
        report: a report.json, or the folder of a run.
        max_drop: points of quality that the result may lose beside the dense model.
        min_speedup: times as fast as the dense model that it must be.
        max_latency: milliseconds that a call may take.
        max_size: bytes of its file, such as 6.5MB.
        max_macs: multiply-accumulates, such as 1.2G, or a share of the dense model's, such as 0.5.
        max_params: parameters, in the same ways.
        baseline: an earlier result that `tolerance` compares with.
        tolerance: figure=percent, such as latency=5%, or quality=points; one or several.
        update_baseline: do not compare with the baseline but write this result there, if the other rules are kept.
        export: judge this exported file, such as onnx-int8, instead of the result that it was made from.
        on_noise: what becomes of a rule of which nothing can be told; by default `max_drop` passes, as in a run, others fail.
        junit: a file for a CI server.
        markdown: a file for a job's summary.

    Raises:
        BadInput: no rule, one that the report has no figure for, a file that cannot be read or written, or one that was changed
            after it was written.
    """
    limits = {
        rules.max_drop: max_drop,
        rules.min_speedup: min_speedup,
        rules.max_latency: max_latency,
        rules.max_size: max_size,
        rules.max_macs: max_macs,
        rules.max_params: max_params,
    }
    tolerances = (tolerance,) if isinstance(tolerance, str) else tuple(tolerance)
    place = _baseline(baseline, tolerances, update_baseline)
    read, path = records.read(report)
    written = {option: Path(told) for option, told in (("--junit", junit), ("--markdown", markdown)) if told is not None}
    _refuse_replacing(
        written | ({"--baseline": place} if place and update_baseline else {}), path, None if update_baseline else place
    )
    if not any(limit is not None for limit in limits.values()) and not place:
        raise BadInput("There is no rule. Give at least one, such as --max-drop 0.5 or --min-speedup 1.5.")
    if len(read.stages) < 2:
        raise BadInput(f"{path} has the dense model and no result. Give the report of a run that finished.")
    sources: dict[Path, records.Sealed] = {path: read}
    at = side(read) if export is None else exported(read, export)
    found = list(_judge(limits, at))
    if read.outcome in (Outcome.NOT_EXACT, Outcome.EXPORT_NOT_EQUAL):
        # No limit makes up for a result that computes something else than it should.
        found.append(Ruling("exact", "fail", read.outcome.value, "equal"))
    if place and not update_baseline:
        earlier = baselines.read(place)
        sources[place] = earlier
        found += [rules.tolerance(at, earlier, text) for text in tolerances]
    unknown = [f"{name} {sealed.UNKNOWN}." for name, one in sources.items() if one.checksum is None]
    said = filter(None, [sentences.at_chance(read), rules.understood(at, max_drop)])
    notes = (*said, *(f"The run warned: {one}" for one in read.warnings), *unknown)
    passed = not any(_red(ruling, on_noise) for ruling in found)
    if junit is not None:
        write_text(Path(junit), rulings.junit(found, f"compress gate {path}", lambda ruling: _red(ruling, on_noise)), "--junit")
    if markdown is not None:
        write_text(Path(markdown), rulings.markdown(found, passed, notes, stages_picture(read)), "--markdown")
    updated = None
    if place and update_baseline and passed:
        write_text(place, baselines.of(at).to_json(), "--baseline")
        updated = str(place)
    return Gate(passed, tuple(found), updated, notes)


def _refuse_replacing(written: dict[str, Path], *read: Path | None) -> None:
    """What is read, and what runs have left, stays; and a file is written once.

    Raises:
        BadInput: something would be replaced.
    """
    places = list(written.items())
    for number, (option, place) in enumerate(places):
        apart(place, *read, option=option)
        if (run := run_of(place)) is not None:
            raise BadInput(f"{option} {place} is a file of the run in {run}, which stays as it is. Give another {option}.")
        for other, there in places[:number]:
            if files.among(place, [there]):
                raise BadInput(f"{option} and {other} are both {place}. Give two files.")


def _red(ruling: Ruling, on_noise: Noise | None) -> bool:
    if ruling.verdict != "cannot tell":
        return ruling.verdict == "fail"
    return on_noise == "fail" or (on_noise is None and ruling.rule != "max-drop")


def _judge(limits: dict[Callable[..., Ruling], Any], at: Any) -> list[Ruling]:
    return [rule(at, limit) for rule, limit in limits.items() if limit is not None]


def _baseline(baseline: str | Path | None, tolerances: Sequence[str], update: bool) -> Path | None:
    """Where the baseline is, if what is asked for makes sense together."""
    if baseline is None:
        if tolerances or update:
            raise BadInput(f"{'--update-baseline' if update else '--tolerance'} needs --baseline FILE.")
        return None
    if not tolerances and not update:
        raise BadInput("--baseline alone allows nothing and refuses nothing. Add --tolerance latency=5%, or --update-baseline.")
    return Path(baseline)
