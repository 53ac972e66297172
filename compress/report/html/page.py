"""The page: run folders -> view model -> one HTML file that loads nothing.

Every text goes through `_shown`, whatever the template does with it: characters that turn the reading order or are not printable
become escapes, a name without an end is cut, and Jinja escapes what is left. The page's own policy (Content-Security-Policy)
forbids every request, and every script but the one with the hash of ours.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from compress import __version__
from compress.report.escape import printable
from compress.report.html import sections
from compress.report.html.command_line import command_line, in_memory
from compress.report.html.headline import verdict
from compress.report.html.layer_view import layers_of
from compress.report.html.run_folder import RunFolder, opened
from compress.report.html.side_by_side import beside
from compress.report.html.view import PageView, RunView, Table
from compress.report.markdown import settings

MOST = 1200
"""Characters of one text; whole sentences have some hundreds."""


def page_of(*places: Path | str, names: Sequence[str] = ()) -> str:
    """The page of one run, or of several beside each other.

    Args:
        places: folders of runs, or their report.json.
        names: what they are called on the page; the names of the folders where there are none.

    Raises:
        BadInput: one of them holds nothing of a run.
    """
    called = names or [Path(place).resolve().name for place in places]
    return rendered(viewed([opened(Path(place), name) for place, name in zip(places, called, strict=True)]))


def viewed(runs: Sequence[RunFolder]) -> PageView:
    """The view model of some runs."""
    views = tuple(run_view(run, f"r{number}") for number, run in enumerate(runs, 1))
    title = f"{views[0].name}: compression report" if len(views) == 1 else f"{len(views)} compression reports"
    return PageView(title, f"compress {__version__}", views, beside(runs, views) if len(views) > 1 else None)


def run_view(run: RunFolder, key: str) -> RunView:
    """The view model of one run; `key` sets its anchors apart from those of others."""
    report = run.report
    timed, told = sections.latency(report) if report is not None else ((), "")
    command = command_line(run.recipe, f"{run.name}-again")
    return RunView(
        key=key,
        name=run.name,
        about=_about(run),
        verdict=verdict(run),
        stages=sections.stages(run.stages, report is not None),
        stage_table=sections.stage_table(run),
        layers=layers_of(run),
        trainings=sections.trainings(run.observed.trainings),
        curves=sections.curves(report.curves) if report is not None else (),
        latency=timed,
        latency_note=told,
        exactness=sections.exactness(report) if report is not None else None,
        exports=sections.exports(report) if report is not None else None,
        failed_exports=()
        if report is None
        else tuple(f"No {one.format} was written: {one.reason}" for one in report.failed_exports),
        remarks=sections.remarks(run),
        environment=None if report is None else Table("What it was made with", ("what", "value"), tuple(settings(report))),
        command=command,
        missing=tuple(_missing(run, command).items()),
    )


def _about(run: RunFolder) -> tuple[str, ...]:
    """Which model this is, and what was asked for, as far as the folder says so."""
    model, method, target = (run.recipe.get(name) for name in ("model", "method", "target"))
    report = run.report
    reached = report.target if report and report.target else target
    # A recipe without a target left it to the contract.
    found = ", looked for" if run.recipe and not target else ""
    said = [
        f"model {Path(model).name}" if isinstance(model, str) and model else "",
        f"method {report.method if report else method}" if report or isinstance(method, str) else "",
        f"target {reached}{found}" if reached else "",
        report.environment.date if report else "",
    ]
    return tuple(part for part in said if part)


def _missing(run: RunFolder, command: str) -> Mapping[str, str]:
    """Sections that a reader may look for, and why they are not there."""
    told: dict[str, str] = {}
    if not run.stages:
        told["stages"] = "No stage was finished."
    elif not any(stage.quality for stage in run.stages):
        told["stages"] = "Quality was not measured, so there is no picture of it."
    if layers_of(run) is None:
        told["layers"] = "This run holds nothing of its layers: an older version wrote it, or it did not finish."
    if not run.observed.trainings:
        told["trainings"] = "This run holds no training: nothing was trained, or an older version wrote it."
    if run.report is not None and run.report.exactness is None:
        told["exactness"] = "There was nothing to prove: no channel was removed and no layer merged."
    if run.report is not None and not run.report.exports:
        told["exports"] = "No file was exported."
    if not command:
        told["command"] = (
            "The model or the data stood in memory of a program, so no command repeats this. In Python "
            "compress.run(model, recipe='recipe.toml', data=data) does, with the same objects."
            if in_memory(run.recipe)
            else "The folder holds no recipe.toml that names a model, so the command cannot be given."
        )
    return told


def rendered(page: PageView) -> str:
    """The file."""
    return (
        _environment()
        .get_template("page.html.j2")
        .render(page=page, style=_own("style.css"), script=_own("script.js"), policy=_policy())
    )


@functools.cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("compress.report.html"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["brief"] = brief
    return made


def _shown(value: Any) -> Any:
    """What becomes of every value that a template prints."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    shown = printable(value)
    return shown if len(shown) <= MOST else f"{shown[:MOST]} ... ({len(value):,} characters)"


def brief(text: str, most: int = 60) -> str:
    """A name where there is little room."""
    shown = printable(text)
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."


def _own(name: str) -> Markup:
    """A file of this package, as it stands."""
    return Markup((Path(__file__).parent / "templates" / name).read_text(encoding="utf-8"))


def _policy() -> str:
    digest = base64.b64encode(hashlib.sha256(_own("script.js").encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
