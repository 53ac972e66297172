"""`stage.json` of a finished stage, read again by a run that goes on: somebody else may have written it."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from compress.curves import Curve, Observed
from compress.edits import Plan, from_json
from compress.errors import BadInput
from compress.report import sealed
from compress.report.records import Exactness, StageRecord
from compress.user import files, wording

NAME = "stage.json"
_LEAST = 1e-9
"""Of a time in milliseconds, or a speed-up; the most is one by it."""


class StageFacts(BaseModel):
    """What a finished stage wrote down.

    Attributes:
        same: whether it left the model as it was.
        record: the model as measured behind it.
        exactness: None where it took nothing out.
        plan: of all stages so far, as JSON.
        notes, warnings: to be told in the report.
        curves, observed: to be drawn in it; an older version found none of the second kind.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    same: bool
    record: StageRecord
    exactness: Exactness | None
    plan: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    curves: tuple[Curve, ...]
    observed: Observed = Observed()

    @property
    def edits(self) -> Plan:
        """The plan.

        Raises:
            BadInput: it cannot be read.
        """
        return from_json(self.plan)


def read(folder: Path, stage: str, first: StageRecord | None = None) -> StageFacts | None:
    """What the stage of a folder wrote down; None where it has not finished.

    Args:
        folder: of the stage.
        stage: its name.
        first: record of the first one, which is measured as this one is.

    Raises:
        BadInput: it cannot be read, was changed, or is of another stage or run.
    """
    try:
        text = files.text(folder / NAME)
        sealed.check(text)
        found = StageFacts.model_validate(files.parsed_json(text))
        found.edits  # noqa: B018 - read once here, where it can be told which file is wrong
    except FileNotFoundError:
        return None
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"])) or "the file"
        raise _refused(folder, f"{where}: {wording.needed(wrong)}") from error
    # Half-written cannot be (see `Workspace.finish`), so something else has damaged it.
    except (OSError, ValueError, BadInput) as error:
        raise _refused(folder, files.told(error)) from error
    if found.record.stage != stage:
        raise _refused(folder, f"it is of the stage '{found.record.stage}', needed is '{stage}'")
    metrics = [one and one.quality and one.quality.metric for one in (first or found.record, found.record)]
    if metrics[0] != metrics[1]:
        raise _refused(folder, f"its quality is told in {metrics[1]}, that of the first stage in {metrics[0]}")
    if (timed := found.record.latency) and not all(_LEAST <= x <= 1 / _LEAST for x in (timed.p50_ms, timed.ratio, *timed.ci95)):
        raise _refused(folder, "its latency is none that can be measured")
    return found


def _refused(folder: Path, why: str) -> BadInput:
    return BadInput(f"{folder} cannot be read ({why.rstrip('.')}). Start again with --force.")
