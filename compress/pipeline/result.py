"""What a run of a model in memory gives back: the smaller model, and everything that was found on the way."""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from torch.fx import GraphModule

from compress.artifact import Artifact
from compress.edits import Plan
from compress.report import notebook
from compress.report.records import Report


@dataclass(frozen=True, repr=False)
class Result:
    """A finished run.

    Attributes:
        model: the smaller model, in eval mode, on the device that the given one was on: a torch module, trainable as any other.
            What was frozen in the given one is frozen in it.
        report: every stage measured; `report.dense` is the first row, `report.result` the last.
        plan: the edits that lead from the given model to this one.
        exports: format -> the file that was written, compared with the model.
        out: the folder of these files, the report and the checkpoint.
    """

    model: GraphModule
    report: Report
    plan: Plan
    exports: Mapping[str, Path]
    out: Path

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.report.verdict} Everything is in {self.out}>"

    def _repr_html_(self) -> str:
        """The table of stages, for a notebook."""
        return notebook.stages(self.report, str(self.out))


def result(report: Report, artifact: Artifact, out: Path, device: str) -> Result:
    """The result of a run that is over: its model is the artifact's own, moved."""
    exports = {record.format: out / record.path for record in report.exports}
    plan = replace(artifact.plan, method=report.method)  # as in plan.json
    return Result(artifact.module.to(device).eval(), report, plan, exports, out)


@contextmanager
def new_folder() -> Generator[Path]:
    """A new temporary folder that stays, unless nothing was written into it."""
    folder = Path(tempfile.mkdtemp(prefix="compress-"))
    try:
        yield folder
    finally:
        with suppress(OSError):  # it is not empty, as a rule
            folder.rmdir()
