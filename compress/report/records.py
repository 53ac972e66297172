"""The report of a run as typed records: what `report.json` holds, and what every other form of the report is drawn from.

The first stage is the dense model, the last the result. Quality values are shares in [0, 1] where the metric is one; a latency
`ratio` above 1 is faster than the dense model. Fields are only ever added; a change of meaning raises `SCHEMA`.
`compress/report/schema.json` is `json_schema()`, shipped for readers in other languages.
"""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from compress.curves import ActivationStates, Curve, TrainingCurve
from compress.errors import BadInput
from compress.report import sealed
from compress.user import files

SCHEMA = 2
"""1: `verdict` alone said whether a contract was broken, and the first stage was called \"analyse\". It is still read."""

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Measured = Annotated[float, Field(ge=1e-9, le=1e9)]  # milliseconds, or a quotient of them
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Record(BaseModel):
    """Frozen, closed, and without NaN or infinity, which JSON does not have."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=True)


class Sealed(Record):
    """A whole file, with a checksum of itself (`compress.report.sealed`)."""

    checksum: Sha256 | None = Field(
        default=None, description="sha256 of everything else; of a record in memory, what the file had that it was read from"
    )

    def to_json(self) -> str:
        """The bytes of the file."""
        return sealed.text(self.model_dump(mode="json", by_alias=True))


class Latency(Record):
    """Time of one call, interleaved with the dense model's."""

    runtime: str = Field(description="ort, ort-cuda, torch, openvino or openvino-int8")
    batch: int = Field(ge=1)
    threads: int = Field(ge=0)
    p50_ms: Measured = Field(description="median milliseconds of one call on a whole batch")
    ratio: Measured = Field(description="median of the paired speed-ups over the dense model; above 1 is faster")
    ci95: tuple[Measured, Measured] = Field(description="95 % confidence interval of the ratio; holding 1 means: cannot tell")
    p50_ci95_ms: tuple[float, float] | None = Field(default=None, description="95 % confidence interval of p50_ms")
    noisy: bool = Field(default=False, description="the rounds scattered too much, or others took the cores, for any claim")
    calm: float = Field(default=1.0, ge=0, le=1, description="share of the rounds that other processes did not disturb")
    rounds_ms: tuple[float, ...] = Field(default=(), description="milliseconds of one call in each round, in time")
    dense_rounds_ms: tuple[float, ...] = Field(default=(), description="those of the dense model, and none for itself")

    def lean(self) -> Latency:
        """Without the single rounds."""
        return self.model_copy(update={"rounds_ms": (), "dense_rounds_ms": ()})

    @property
    def verdict(self) -> Literal["faster", "slower", "cannot tell"]:
        """What may be claimed."""
        if self.noisy:
            return "cannot tell"
        return "faster" if self.ci95[0] > 1 else "slower" if self.ci95[1] < 1 else "cannot tell"


SHARES = frozenset({"top1", "top5", "f1", "label_accuracy", "miou", "map", "agreement"})
"""Metrics that count a part of a whole."""


class Quality(Record):
    """One metric on the test data."""

    metric: str
    value: float = Field(
        description="share in [0, 1] for top1, top5, f1, label_accuracy, miou, map and agreement; dB for psnr; units for mae"
    )
    samples: int = Field(ge=1)
    higher_is_better: bool = True
    points: float = Field(default=100.0, gt=0, description="points per unit of value: 100 for shares, 1 for native units")
    drop_ci95: tuple[float, float] | None = Field(
        default=None, description="95 % confidence interval of the points lost beside the dense model, on the same samples"
    )

    @model_validator(mode="after")
    def _possible(self) -> Quality:
        if self.metric in SHARES and not 0 <= self.value <= 1:
            raise ValueError(f"{self.metric} of {self.value:g} cannot be")
        return self


class StageRecord(Record):
    """The model as one stage left it; None where something was not measured."""

    stage: str
    params: Count
    macs: Count = Field(description="multiply-accumulates of one sample")
    file_bytes: Count
    peak_memory_bytes: Count = Field(description="weights + activations alive at once, for the batch of the latency")
    latency: Latency | None = None
    quality: Quality | None = None
    seconds: Seconds = Field(description="time that the stage took, without measuring it")


class Exactness(Record):
    """Is the smaller model the masked one? Measured before any weight was refitted."""

    worst_abs: float = Field(ge=0, description="largest difference between removed and masked outputs, over all samples")
    tolerance: float = Field(ge=0)
    samples: int = Field(ge=1)

    @property
    def holds(self) -> bool:
        """Within the tolerance."""
        return self.worst_abs <= self.tolerance


class Parity(Record):
    """Does the exported file compute what the model computes?"""

    worst_abs: float = Field(ge=0)
    tolerance: float = Field(ge=0)


class Closeness(Record):
    """How near the exported file's outputs are to the model's on the whole, on real inputs."""

    relative: float = Field(ge=0, description="root mean square of the difference, as a share of that of the model's outputs")
    agreement: float | None = Field(ge=0, le=1, description="share of samples on which both choose the same class")
    samples: int = Field(ge=1)
    allowed: float | None = Field(default=None, description="bound of `relative`, for a format with fewer bits than the model")


class QatRecord(Record):
    """An 8-bit file that lost too much, after the model was trained with its rounding in place."""

    epochs: float = Field(gt=0)
    before: Quality = Field(description="of the file whose ranges were calibrated only")
    after: Quality | None = Field(default=None, description="of the file that was written after training")
    stays: bool = Field(default=False, description="the file is that after training; its weights are not those of the model")
    reason: str = Field(default="", description="why there is no such file")
    seconds: Seconds


class ExportRecord(Record):
    """One exported file."""

    format: str
    path: str = Field(description="relative to the folder of the report")
    sha256: Sha256
    parity: Parity | None = None
    opset: int | None = None
    bytes: Count | None = None
    closeness: Closeness | None = None
    quality: Quality | None = Field(default=None, description="of the file itself, for a format with fewer bits than the model")
    kept_float: tuple[str, ...] = Field(default=(), description="layers of a quantized file that compute in float")
    seconds: Seconds | None = Field(default=None, description="time that it took to write and compare the file")
    qat: QatRecord | None = Field(default=None, description="None where the first file lost no more than it may")


class FailedExport(Record):
    """A format that was asked for and could not be written."""

    format: str
    reason: str


class LayerRecord(Record):
    """A layer with parameters or multiply-accumulates, or an activation, which has none; None where a model has no such layer."""

    name: str
    kind: str
    width: int | None = Field(default=None, description="channels that it makes in the dense model; None where it has no weights")
    width_after: int | None = None
    params: Count | None = None
    params_after: Count | None = None
    macs: Count | None = Field(default=None, description="multiply-accumulates of one sample")
    macs_after: Count | None = None
    frozen: str = Field(default="", description="why none of its channels could go; empty where some could, or nobody looked")


class Stays(Record):
    """An activation that no affine function could replace, or around which nothing could then be merged."""

    activation: str
    reason: str


class Environment(Record):
    """Where the figures were measured."""

    compress: str
    python: str
    torch: str
    onnx: str | None
    onnxruntime: str | None
    os: str
    cpu: str
    cores: int = Field(ge=1, description="cores that the process could use")
    gpu: str | None
    date: str = Field(description="UTC, ISO 8601")


class Outcome(StrEnum):
    """What became of the contracts of a run; anything but `kept` ends it with exit code 5."""

    KEPT = "kept"
    NOT_EXACT = "not exact"
    QUALITY_LOST = "quality lost"
    EXPORT_LOST_QUALITY = "export lost quality"
    EXPORT_NOT_EQUAL = "export not equal"


class Broken(Record):
    """The contract that was broken, with its figures."""

    outcome: Outcome
    export: str | None = Field(default=None, description="the format, where an exported file broke it")
    metric: str | None = None
    points: float = Field(default=100.0, gt=0, description="as in a quality")
    lost: float | None = Field(default=None, description="points of the metric; of outputs where the result is not exact")
    allowed: float | None = Field(default=None, description="the most that may be lost")
    ci95: tuple[float, float] | None = Field(default=None, description="95 % confidence interval of what is lost")
    reason: str = Field(default="", description="why the exported file is not equal to the model, or nothing can be told")


class Spent(Record):
    """A part of the time that a run took."""

    what: str
    seconds: Seconds


class Report(Sealed):
    """A whole run."""

    schema_version: Literal[2] = Field(default=SCHEMA, alias="schema")
    method: str
    outcome: Outcome = Field(default=Outcome.KEPT, description="whether every contract holds")
    broken: Broken | None = Field(default=None, description="None where every contract holds")
    verdict: str = Field(description="the outcome in one sentence: what was reached, or which contract failed")
    seed: int
    environment: Environment
    stages: tuple[StageRecord, ...] = Field(min_length=1, description="the dense model first, the result last")
    exactness: Exactness | None = None
    exports: tuple[ExportRecord, ...] = ()
    failed_exports: tuple[FailedExport, ...] = ()
    target: str | None = None
    max_drop: float | None = None
    undecided: bool = Field(default=False, description="whether samples could not tell if max_drop is kept")
    plan_sha256: Sha256 | None = None
    data_sha256: Sha256 | None = Field(default=None, description="of the data.toml, where the data is described by one")
    recipe_sha256: Sha256 | None = Field(default=None, description="of the file given as --recipe; recipe.toml is what was read")
    warnings: tuple[str, ...] = Field(default=(), description="what was warned of; to be read before the figures")
    asides: tuple[str, ...] = Field(default=(), description="those of the warnings that make no figure doubtful")
    notes: tuple[str, ...] = ()
    curves: tuple[Curve, ...] = Field(default=(), description="findings that stages left to be drawn")
    pictures: tuple[str, ...] = Field(default=(), description="files that show the curves, in the folder pictures")
    spent: tuple[Spent, ...] = Field(default=(), description="all of the time of the process that wrote this, by what it went to")
    large_batch: Latency | None = Field(default=None, description="of the result beside the dense model, many samples a call")
    chance: float | None = Field(default=None, ge=0, le=1, description="quality of guessing, where the metric tells it")
    layers: tuple[LayerRecord, ...] = Field(default=(), description="in the order of execution; those of the result alone last")
    stays: tuple[Stays, ...] = Field(default=(), description="activations that stay as they are, and why")
    activations: tuple[ActivationStates, ...] = Field(default=(), description="states of the dense model's activations")
    trainings: tuple[TrainingCurve, ...] = Field(default=(), description="in the order in which they ran")

    @model_validator(mode="before")
    @classmethod
    def _of_schema_1(cls, values: Any) -> Any:
        """A report of the first schema: prose was all that said which contract failed."""
        if not isinstance(values, dict) or cast("dict[str, Any]", values).get("schema") != 1:
            return values
        old = cast("dict[str, Any]", values)
        if not all(isinstance(old.get(key, []), list) for key in ("stages", "exports")):
            return {**old, "schema": SCHEMA}  # the fields themselves are refused by name
        told = str(old.get("verdict", ""))
        exported = told.startswith("The export ")
        lost = Outcome.EXPORT_LOST_QUALITY if exported else Outcome.QUALITY_LOST
        outcome = lost if "--max-drop" in told else Outcome.EXPORT_NOT_EQUAL if exported else Outcome.KEPT
        stages = [
            {**stage, "stage": "analyze"} if isinstance(stage, dict) and stage.get("stage") == "analyse" else stage
            for stage in old.get("stages", ())
        ]
        exports = [
            {("qat" if key == "relearned" else key): value for key, value in cast("dict[str, Any]", export).items()}
            for export in old.get("exports", ())
            if isinstance(export, dict)
        ]
        return {**old, "schema": SCHEMA, "outcome": outcome, "stages": stages, "exports": exports}

    @property
    def dense(self) -> StageRecord:
        """The model as it came."""
        return self.stages[0]

    @property
    def result(self) -> StageRecord:
        """The model that is shipped."""
        return self.stages[-1]


def from_json(text: str) -> Report:
    """Read a report back.

    Raises:
        BadInput: changed after it was written, or not a report of this schema; names the first field that is wrong.
    """
    sealed.check(text)
    try:
        return Report.model_validate_json(sealed.in_lines(text))
    except ValidationError as error:
        raise BadInput(f"The report cannot be read ({sealed.refused(error, SCHEMA)}).") from error


def read(place: str | Path) -> tuple[Report, Path]:
    """The report of a run, from its report.json or the folder that holds it, and where it was.

    Raises:
        BadInput: there is none, it cannot be read, or it was changed after it was written.
    """
    files.here(place)
    path = Path(place) / "report.json" if Path(place).is_dir() else Path(place)
    try:
        return from_json(files.text(path)), path
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror or error if isinstance(error, OSError) else "it is no text"
        raise BadInput(f"{path} cannot be read ({reason}). Give the folder of a run, or its report.json.") from error
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error


def json_schema() -> dict[str, Any]:
    """JSON Schema of `report.json`."""
    schema = Report.model_json_schema(by_alias=True, mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def write_schema(path: Path) -> None:
    """Refresh the shipped schema after the records changed."""
    path.write_text(json.dumps(json_schema(), indent=1) + "\n")
