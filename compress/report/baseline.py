"""What an earlier, accepted result measured: the part of its report that later ones are compared with.

`compress gate --update-baseline` writes it; it is small enough to be kept beside the code. A whole report.json serves as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from compress.errors import BadInput
from compress.report import records, sealed
from compress.report.changes import Side, side
from compress.report.records import Environment, StageRecord
from compress.user import files

SCHEMA = 1
MEASURED = {"latency": "latency", "quality": "quality"}
"""Figures that a stage may lack."""


class Baseline(records.Sealed):
    """The dense model and the result of a run, and where they were measured."""

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")
    kind: Literal["baseline"] = "baseline"
    environment: Environment
    dense: StageRecord
    result: StageRecord

    @property
    def side(self) -> Side:
        """As one side of a comparison."""
        return Side(self.dense, self.result, self.environment)

    def require(self, figure: str) -> None:
        """Raises BadInput where the baseline has no such figure."""
        if figure in MEASURED and getattr(self.result, MEASURED[figure]) is None:
            raise BadInput(
                f"The baseline has no {figure} to compare with. Measure it, and take the report with --update-baseline."
            )


def of(at: Side) -> Baseline:
    """What later results are compared with."""
    return Baseline(environment=at.environment, dense=_lean(at.dense), result=_lean(at.now))


def _lean(stage: StageRecord) -> StageRecord:
    """Without the single rounds of a timing, which nothing is compared by."""
    return stage if stage.latency is None else stage.model_copy(update={"latency": stage.latency.lean()})


def read(path: Path) -> Baseline:
    """A baseline, or the report of an earlier run.

    Raises:
        BadInput: there is none, it cannot be read, or it was changed after it was written.
    """
    try:
        text = files.text(path)
    except FileNotFoundError as error:
        raise BadInput(
            f"There is no baseline {path}. Write it from a good run: 'compress gate ... --update-baseline'."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"The baseline {path} cannot be read ({error}). Give a baseline.json or a report.json.") from error
    try:
        sealed.check(text)
        return Baseline.model_validate_json(sealed.in_lines(text))
    except ValidationError as error:
        if '"stages"' in text:
            report = records.read(path)[0]
            return of(side(report)).model_copy(update={"checksum": report.checksum})
        raise BadInput(f"The baseline {path} cannot be read ({sealed.refused(error, SCHEMA)}).") from error
    except BadInput as error:
        raise BadInput(f"The baseline {path}: {error}") from error
