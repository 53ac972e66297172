"""What is taken along from the folder of a run: only what its report measured, and only of a run that kept its contract."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from compress.errors import BadInput, GateFailed
from compress.report.records import ExportRecord, Outcome, Report
from compress.user import files
from exporters.standalone import checksums


def refuse_broken(report: Report, allowed: bool, what: str) -> None:
    """Nobody should ship by mistake what does not keep its contract.

    Raises:
        GateFailed: it does not, and that was not allowed.
    """
    if report.outcome is not Outcome.KEPT and not allowed:
        raise GateFailed(
            f"The run broke its contract ({report.outcome.value}) and {what}: {report.verdict} Take a run that kept it, or add "
            "--allow-broken, which marks what comes out."
        )


def broken(report: Report) -> str:
    """The contract that a run broke; empty where it kept all."""
    return "" if report.outcome is Outcome.KEPT else report.outcome.value


def settings(report: Path) -> dict[str, Any]:
    """Settings of the run that a report is of, from the recipe beside it; empty where there is none to be read."""
    try:
        return files.toml_in(report.parent / "recipe.toml")
    except (OSError, ValueError):
        return {}


def exported(folder: Path, export: ExportRecord) -> dict[str, bytes]:
    """An exported file and the weights that may lie beside it, if it is the one that the report measured.

    Raises:
        BadInput: it is not, or lies outside of the folder.
    """
    path = folder / export.path
    if Path(export.path).is_absolute() or ".." in Path(export.path).parts:
        raise BadInput(f"The report names a model outside its folder ({export.path}). Give the folder of a run of your own.")
    found = {export.path: content(path)}
    if hashlib.sha256(found[export.path]).hexdigest() != export.sha256:
        raise BadInput(f"{path} is not the file that the report measured. Run again, or restore it.")
    beside = (p for p in path.parent.iterdir() if p.name in (f"{path.name}.data", f"{path.stem}.bin"))
    return found | {p.relative_to(folder).as_posix(): content(p) for p in sorted(beside)}


def content(path: Path) -> bytes:
    """The bytes of a file of a run.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        return files.content(path, most=checksums.MOST_BYTES)
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}). Give the folder of a finished run.") from error
