"""What the folder of a run holds, whatever became of the run: every file by itself, so that one that is broken hides no other.

A report that cannot be read is not drawn from; the records of the finished stages then stand for it, and the reason is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from compress.curves import OBSERVED, Observed
from compress.edits import Plan
from compress.edits import from_json as plan_of
from compress.edits import read as read_plan
from compress.errors import BadInput
from compress.recipe import settings_in
from compress.report import records, sealed
from compress.report.records import Report, StageRecord
from compress.user import files, wording

ANALYSIS = "analysis.json"
"""Where a page looks for what `compress analyze --json` printed."""
UNFINISHED = "There is no report.json"
"""How the reason begins why a run has no report, where that is no damage."""
_OF_A_RUN = ("report.json", "recipe.toml", "plan.json", "stages")


@dataclass(frozen=True)
class LayerAnalysis:
    """A row of `compress analyze` as far as a page shows it; None where that said nothing."""

    layer: str
    activation: str | None = None
    entropy: float | None = None
    needed: int | None = None
    channels: int | None = None
    error_at_half: float | None = None
    linearized_saves_ms: float | None = None
    stays: str | None = None
    frozen: str | None = None


@dataclass(frozen=True)
class RunFolder:
    """Everything that could be read of a run.

    Attributes:
        name: what it is called among others.
        report: None where there is none, or none that can be read: `problem` says why.
        stages: records of the finished stages, the dense model first; of the report where there is one.
        observed: what stages left, of a run without a report.
        notes, warnings: likewise.
        plan: None where there is none, or none that can be read.
        recipe: settings by name; empty where there are none.
        analysis: rows of `ANALYSIS`.
        broken: files that are there and could not be read, a sentence each.
    """

    name: str
    report: Report | None
    problem: str
    stages: tuple[StageRecord, ...]
    observed: Observed
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    plan: Plan | None
    recipe: Mapping[str, Any]
    analysis: tuple[LayerAnalysis, ...]
    broken: tuple[str, ...]


def opened(place: Path, name: str | None = None) -> RunFolder:
    """Read a run from its folder, or from its report.json.

    Raises:
        BadInput: there is nothing of a run.
    """
    files.here(place)
    folder = place if place.is_dir() else place.parent
    if not place.exists() or not any((folder / one).exists() for one in (*_OF_A_RUN, place.name)):
        raise BadInput(
            f"{place} holds no run: neither report.json, recipe.toml, plan.json nor stages. Give the folder of a run, its --out."
        )
    broken: list[str] = []
    report, problem = _report(place)
    facts = [] if report is not None else list(_facts(folder, broken))
    plan = _plan(folder, facts, broken)
    return RunFolder(
        name=name or str(place),
        report=report,
        problem=problem,
        stages=report.stages if report is not None else tuple(_records(facts, broken)),
        observed=_observed(facts, broken) if report is None else Observed(report.activations, report.trainings),
        notes=report.notes if report is not None else _texts(facts, "notes"),
        warnings=report.warnings if report is not None else _texts(facts, "warnings"),
        plan=plan,
        recipe=_recipe(folder, broken),
        analysis=_analysis(folder, broken),
        broken=tuple(broken),
    )


def _report(place: Path) -> tuple[Report | None, str]:
    path = place / "report.json" if place.is_dir() else place
    if not path.exists():
        return None, f"{UNFINISHED}: the run was cut off, failed, or is still going on."
    try:
        return records.read(path)[0], ""
    except BadInput as error:
        return None, str(error).removeprefix(f"{path}: ")


def _facts(folder: Path, broken: list[str]) -> Iterable[dict[str, Any]]:
    """What every finished stage wrote down, in order."""
    for path in sorted((folder / "stages").glob("[0-9]*/stage.json")):
        try:
            text = files.text(path)
            sealed.check(text)
            found = files.parsed_json(text)
        except (OSError, ValueError, BadInput) as error:
            broken.append(f"stages/{path.parent.name}/stage.json cannot be read ({files.told(error)}); its stage is left out.")
            continue
        if isinstance(found, dict):
            yield cast("dict[str, Any]", found)


def _records(facts: Iterable[dict[str, Any]], broken: list[str]) -> Iterable[StageRecord]:
    for one in facts:
        try:
            yield StageRecord.model_validate(one.get("record"))
        except ValidationError as error:
            first = error.errors()[0]
            wrong = f"{'.'.join(map(str, first['loc']))}: {wording.needed(first)}"
            broken.append(f"The record of a stage cannot be read ({wrong}); it is left out.")


def _observed(facts: list[dict[str, Any]], broken: list[str]) -> Observed:
    """Of the last stage, which has those of all before it."""
    try:
        return OBSERVED.validate_python(facts[-1].get("observed", {})) if facts else Observed()
    except ValidationError:
        broken.append("What the last stage observed cannot be read; that is left out.")
        return Observed()


def _texts(facts: list[dict[str, Any]], key: str) -> tuple[str, ...]:
    found: Any = facts[-1].get(key, ()) if facts else ()
    return tuple(dict.fromkeys(map(str, cast("list[Any]", found)))) if isinstance(found, list) else ()


def _plan(folder: Path, facts: list[dict[str, Any]], broken: list[str]) -> Plan | None:
    """Of the result, or else as the last finished stage left it."""
    try:
        if (folder / "plan.json").exists():
            return read_plan(folder / "plan.json")
        return plan_of(str(facts[-1]["plan"])) if facts and "plan" in facts[-1] else None
    except BadInput as error:
        broken.append(f"{error} What was removed is therefore not shown.")
        return None


def _recipe(folder: Path, broken: list[str]) -> Mapping[str, Any]:
    if not (folder / "recipe.toml").exists():
        return {}
    try:
        return settings_in(folder / "recipe.toml")
    except BadInput as error:
        broken.append(f"{error} The command line is therefore not shown.")
        return {}


def _analysis(folder: Path, broken: list[str]) -> tuple[LayerAnalysis, ...]:
    if not (folder / ANALYSIS).exists():
        return ()
    try:
        rows = files.json_in(folder / ANALYSIS)
        return tuple(_layer(cast("dict[str, Any]", row)) for row in cast("list[Any]", rows) if isinstance(row, dict))
    except (OSError, ValueError, TypeError) as error:
        broken.append(f"{ANALYSIS} cannot be read ({files.told(error)}); needed is what 'compress analyze --json' prints.")
        return ()


def _layer(row: dict[str, Any]) -> LayerAnalysis:
    def text(name: str) -> str | None:
        value: object = row.get(name)
        return value if isinstance(value, str) else None

    def number(name: str) -> float | None:
        value: object = row.get(name)
        fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return float(cast("float", value)) if fits else None

    needed, channels = number("needed"), number("channels")
    return LayerAnalysis(
        layer=text("layer") or "",
        activation=text("activation"),
        entropy=number("entropy"),
        needed=None if needed is None else int(needed),
        channels=None if channels is None else int(channels),
        error_at_half=number("error_at_half"),
        linearized_saves_ms=number("linearized_saves_ms"),
        stays=text("stays"),
        frozen=text("frozen"),
    )
