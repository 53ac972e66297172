"""`compress report`: the page of a run that is there already, whatever became of it, or of several beside each other."""

from __future__ import annotations

from pathlib import Path

from compress.commands.outputs import free, write_text
from compress.errors import BadInput
from compress.pipeline.own_files import of_run
from compress.report.html import PAGE
from compress.report.html.page import rendered, viewed
from compress.report.html.run_folder import UNFINISHED, RunFolder, opened


def report_page(*runs: str | Path, out: str | Path | None = None, force: bool = False) -> Path:
    """Write report.html: everything that is known of a run in one file that loads nothing, and where it is.

    Args:
        runs: folders of runs, finished or not, or their report.json; several are put beside each other.
        out: the file; None for report.html in the folder of the run, or of several here.
        force: write over what is there; the page of a run in its own folder is always made anew.

    Raises:
        BadInput: no run, one that is none, or a file that is there or cannot be written. Also, with the page written and what
            it cannot show, where a file of a run is damaged.
    """
    places = [Path(run) for run in dict.fromkeys(map(str, runs))]
    if not places:
        raise BadInput("No run was given; needed is the folder of one, as in 'compress report out'.")
    found = [opened(place, name) for place, name in zip(places, _names(places), strict=True)]
    page = rendered(viewed(found))
    if out is None and len(places) == 1:
        path = _folder(places[0]) / PAGE
    else:
        path = Path(PAGE if out is None else out)
        free(path, force, *(one for run in places for one in of_run(_folder(run)) if one.name != PAGE))
    if path.is_dir():
        raise BadInput(f"{path} is a folder; needed is the name of a file, such as {path / PAGE}. Give another --out.")
    write_text(path, page)
    if damaged := [f"{run.name}: {reason}" for run in found for reason in _damaged(run)]:
        raise BadInput(f"{path} is written, without what cannot be read. {' '.join(damaged)}")
    return path


def _folder(place: Path) -> Path:
    return place if place.is_dir() else place.parent


def _damaged(run: RunFolder) -> tuple[str, ...]:
    """What is there of a run and cannot be read; a report that is not there yet is no damage."""
    return ((run.problem,) if run.problem and not run.problem.startswith(UNFINISHED) else ()) + run.broken


def _names(places: list[Path]) -> list[str]:
    """What runs are called: one by its folder, several as they were given, which tells them apart."""
    return [places[0].resolve().name] if len(places) == 1 else [str(place) for place in places]
