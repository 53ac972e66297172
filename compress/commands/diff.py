"""`compress diff`: what changed between the reports of two runs, stage by stage, each with the interval that it is known with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.commands import run_files
from compress.report import records
from compress.report.changes import FIGURES, Change, change, side
from compress.report.records import Report

RESULT = "result"
SETTINGS = ("method", "target", "max_drop", "seed", "plan_sha256")
"""What the report itself says of them; all others are in the recipe beside it, where that was not left behind."""


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was.

    Attributes:
        where: a stage, "result", "settings", "environment" or "exports".
        what: a figure or a field.
        old: as it was.
        new: as it is.
        worse: points of quality, or percent of the old value; below 0 is better. None for what is no figure, or cannot be told.
        ci95: 95 % confidence interval of `worse`.
        verdict: "better", "worse", "cannot tell", or empty for what is no figure.
        reason: why nothing can be told.
    """

    where: str
    what: str
    old: float | str | None
    new: float | str | None
    worse: float | None = None
    ci95: tuple[float, float] | None = None
    verdict: str = ""
    reason: str = ""


def diff(old: str | Path, new: str | Path) -> list[Difference]:
    """What changed from one report to another. Empty where nothing did.

    Args:
        old: a report.json, or the folder of a run.
        new: the other one.

    Raises:
        BadInput: a report cannot be read.
    """
    (before, first), (after, second) = records.read(old), records.read(new)
    return [
        *_fields("settings", before, after, SETTINGS),
        *_recipes(run_files.settings(first), run_files.settings(second)),
        *_fields("environment", before.environment, after.environment, tuple(type(before.environment).model_fields)),
        *_stages(before, after),
        *_figures(RESULT, before, after, None),
        *_exports(before, after),
    ]


def _fields(where: str, old: object, new: object, names: tuple[str, ...]) -> list[Difference]:
    pairs = ((name, getattr(old, name), getattr(new, name)) for name in names if name != "date")
    return [Difference(where, name, a, b) for name, a, b in pairs if a != b]


def _recipes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """Settings of two recipes that the reports do not hold; nothing where one of them is not there."""
    names = [name for name in dict.fromkeys((*old, *new)) if name not in SETTINGS] if old and new else []
    told = [(name, *(None if of.get(name) is None else str(of[name]) for of in (old, new))) for name in names]
    return [Difference("settings", name, a, b) for name, a, b in told if a != b]


def _stages(old: Report, new: Report) -> list[Difference]:
    names = [[stage.stage for stage in report.stages] for report in (old, new)]
    found: list[Difference] = []
    for name in dict.fromkeys((*names[0], *names[1])):
        if name in names[0] and name in names[1]:
            found += _figures(name, old, new, name)
        else:
            there = name in names[1]
            found.append(Difference(name, "stage", None if there else "there", "there" if there else None))
    return found


def _figures(where: str, old: Report, new: Report, stage: str | None) -> list[Difference]:
    """Of one stage, or of the results; where both results are the same stage, that says it already."""
    if stage is None and old.result.stage == new.result.stage:
        return []
    sides = [side(r, next((s for s in r.stages if s.stage == stage), None)) for r in (old, new)]
    changes = (change(figure, *sides) for figure in FIGURES)
    return [_difference(where, c) for c in changes if c.old != c.new or (c.change is not None and c.change.value)]


def _difference(where: str, change: Change) -> Difference:
    found = change.change
    if found is None:
        return Difference(where, change.figure, change.old, change.new, verdict="cannot tell", reason=change.reason)
    verdict = "worse" if found.low > 0 else "better" if found.high < 0 else "cannot tell"
    return Difference(where, change.figure, change.old, change.new, found.value, (found.low, found.high), verdict)


def _exports(old: Report, new: Report) -> list[Difference]:
    """Files by their name: there or not, another content, another size."""
    before, after = ({export.path: export for export in report.exports} for report in (old, new))
    found: list[Difference] = []
    for path in dict.fromkeys((*before, *after)):
        one, other = before.get(path), after.get(path)
        if one is None or other is None:
            found.append(Difference("exports", path, one and one.sha256, other and other.sha256))
        elif one.sha256 != other.sha256:
            found.append(Difference("exports", f"{path} sha256", one.sha256, other.sha256))
            if one.bytes != other.bytes:
                found.append(Difference("exports", f"{path} bytes", one.bytes, other.bytes))
    return found
