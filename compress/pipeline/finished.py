"""A run that is over already: its report stands, and nothing is timed or exported once more."""

from __future__ import annotations

from compress.errors import BadInput
from compress.pipeline.workspace import Workspace
from compress.report import records
from compress.report.records import Report
from exporters.atomic import sha256

SAID = "The run is finished already: its report stands, and nothing was done again."


def finished(workspace: Workspace) -> Report | None:
    """The report of a folder in which every file is the one that it tells of; None where something is still to be done."""
    out = workspace.out
    try:
        report = records.read(out)[0]
    except BadInput:
        return None
    if workspace.finished() != tuple(stage.stage for stage in report.stages):
        return None
    # The report is written when all else is there, but somebody may have taken a file away since.
    there = all((out / one.path).is_file() and sha256(out / one.path) == one.sha256 for one in report.exports)
    return report if there and (out / "plan.json").is_file() else None
