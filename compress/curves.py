"""What a stage hands on to be drawn: curves, the states of activations, the course of trainings. Plain data, like a note."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import cleandoc

from pydantic import ConfigDict, TypeAdapter


def _closed(description: str | None) -> ConfigDict:
    """No other fields, no NaN and no infinity, which JSON does not have."""
    return ConfigDict(extra="forbid", allow_inf_nan=False, json_schema_extra={"description": cleandoc(description or "")})


@dataclass(frozen=True)
class Series:
    """One line of a picture: as many x as y, all finite."""

    __pydantic_config__ = _closed(__doc__)

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or not all(map(math.isfinite, self.x + self.y)):
            raise ValueError(f"{self.name} has {len(self.x)} x and {len(self.y)} y; needed are as many of both, all finite")


@dataclass(frozen=True)
class Curve:
    """One picture.

    Attributes:
        title: what it shows; distinct among the curves of a run.
        x, y: what the axes are, with their units.
        series: lines through points.
        levels: named horizontal lines, such as the quality of the dense model.
        marks: named vertical lines.
        log_x: whether equal steps along x are equal ratios.
        note: a sentence for who reads the picture.
    """

    __pydantic_config__ = _closed(__doc__)

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    levels: Mapping[str, float] = field(default_factory=dict[str, float])
    marks: Mapping[str, float] = field(default_factory=dict[str, float])
    note: str = ""
    log_x: bool = False


CURVES = TypeAdapter(tuple[Curve, ...])
"""Several curves to JSON and back."""


@dataclass(frozen=True)
class ActivationStates:
    """The states of one activation over the calibration images.

    Attributes:
        activation: its path.
        channels: how many it has.
        entropy: mean bits per channel in [0, 1], as `--entropy` takes it.
        always_on, always_off: shares of the channels that never switched.
    """

    __pydantic_config__ = _closed(__doc__)

    activation: str
    channels: int
    entropy: float
    always_on: float
    always_off: float


@dataclass(frozen=True)
class TrainedEpoch:
    """A training after `number` epochs: mean loss (None before the first), quality on held-out data, seconds so far."""

    __pydantic_config__ = _closed(__doc__)

    number: float
    loss: float | None
    quality: float
    seconds: float


@dataclass(frozen=True)
class TrainingCurve:
    """One training.

    Attributes:
        stage: who trained.
        metric: of the quality, which is that of held-out data, never of the test data.
        epochs: the first is the state before training.
        chosen: index of the epoch whose weights were taken; 0 where training was taken back.
    """

    __pydantic_config__ = _closed(__doc__)

    stage: str
    metric: str
    epochs: tuple[TrainedEpoch, ...]
    chosen: int


@dataclass(frozen=True)
class Observed:
    """What the stages of a run observed of single activations and trainings, in their order."""

    activations: tuple[ActivationStates, ...] = ()
    trainings: tuple[TrainingCurve, ...] = ()

    def then(self, activations: tuple[ActivationStates, ...] = (), trainings: tuple[TrainingCurve, ...] = ()) -> Observed:
        """With more; activations that are looked at again keep what was found first, which is of the dense model."""
        known = {one.activation for one in self.activations}
        new = tuple(one for one in activations if one.activation not in known)
        return Observed(self.activations + new, self.trainings + trainings)


OBSERVED = TypeAdapter(Observed)
"""That to JSON and back."""
