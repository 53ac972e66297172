"""`compress compare`: the results of several runs in one table and one picture."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compress.commands import run_files
from compress.commands.outputs import apart, write_text
from compress.errors import BadInput
from compress.report import pictures, records
from compress.report.comparison import Comparison, compared, markdown, spans
from compress.user.wording import many

_FREE = ("method", "target", "tolerance", "export")
"""Settings in which runs may differ and still be compared: what is asked for is in the table."""
_FILES = ("compare.md", "compare.json", "compare.svg")


def compare(*runs: str | Path, out: str | Path | None = None, force: bool = False) -> Comparison:
    """Put runs beside each other; one that was cut off is named and left out.

    Args:
        runs: folders of runs, or their report.json; two at least.
        out: folder that compare.md, compare.json and compare.svg are written to; None for nowhere.
        force: write over what is there.

    Raises:
        BadInput: fewer than two runs that have a result, a report that cannot be read, or no common metric.
    """
    names = dict.fromkeys(map(str, runs))
    if len(names) < 2:
        raise BadInput(f"Found {many(len(names), 'different run')}; needed are two or more to compare. Give the folders of runs.")
    cut_off = [name for name in names if _cut_off(Path(name))]
    opened = {name: records.read(name) for name in names if name not in cut_off}
    if len(opened) < 2:
        raise BadInput(
            f"{', '.join(cut_off)} {'was' if len(cut_off) == 1 else 'were'} cut off and without a result, so there is nothing to "
            "compare. Finish it: 'compress run --resume --out FOLDER'."
        )
    found = compared({name: report for name, (report, _) in opened.items()}, dict.fromkeys(cut_off, "cut off"))
    told = {name: run_files.settings(path) for name, (_, path) in opened.items()}
    settings = {name: {key: value for key, value in every.items() if key not in _FREE} for name, every in told.items()}
    lacking = [f"{name} was cut off and is left out; 'compress run --resume --out {name}' finishes it." for name in cut_off]
    found = dataclasses.replace(found, warnings=(*lacking, *found.warnings, *_differing(settings)))
    if out is not None:
        for name in _FILES:
            apart(Path(out) / name, *(path for _, path in opened.values()))
        write(found, Path(out), force)
    return found


def _cut_off(folder: Path) -> bool:
    """The folder of a run that has no report yet; any other that has none is refused by name."""
    return (folder / "recipe.toml").is_file() and not (folder / "report.json").exists()


def write(found: Comparison, out: Path, force: bool) -> None:
    """compare.md, compare.json and, with matplotlib, compare.svg in a folder.

    Raises:
        BadInput: there is one already and `force` is not given, or it cannot be written.
    """
    if not force and any(os.path.lexists(out / name) for name in _FILES):
        raise BadInput(f"{out} holds another comparison. Give another --out, or --force to replace it.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        drawn = pictures.picture(found.picture, out / "compare.svg", spans(found))
    except OSError as error:
        raise BadInput(f"{out} cannot be written ({error.strerror or error}). Give another --out.") from error
    write_text(out / "compare.json", json.dumps(dataclasses.asdict(found), indent=1, ensure_ascii=False) + "\n")
    write_text(out / "compare.md", markdown(found, "compare.svg" if drawn else None))


def _differing(settings: Mapping[str, dict[str, Any]]) -> list[str]:
    """Settings in which runs are not alike, a sentence for each run beside the first."""
    (first, mine), *others = settings.items()
    said = []
    for name, theirs in others:
        keys = [key for key in dict.fromkeys((*mine, *theirs)) if mine and theirs and mine.get(key) != theirs.get(key)]
        if keys:
            pairs = ", ".join(f"--{key.replace('_', '-')} {theirs.get(key)!r} for {mine.get(key)!r}" for key in keys[:5])
            said.append(f"{name} had other settings than {first}: {pairs}{' and more' if len(keys) > 5 else ''}.")
    return said
