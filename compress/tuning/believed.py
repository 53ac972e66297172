"""What a study tells, looked at before anything is done by it: whoever made it, or worked on it, may be a stranger.

A recipe in it counts as any other recipe: code that it names needs to be typed, or `--trust-recipe`. What is searched are
settings that a search may try (`space`), and a trial tries nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from compress.errors import BadInput, CompressError
from compress.user import wording

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

FOLDER = "trials"
"""In the folder of a search, with a folder for each trial that is carried out."""
MOST_TRIALS = 10_000
"""Of one study."""
_Figure = Annotated[float, Field(ge=-1e9, le=1e9)]
_Amount = Annotated[float, Field(ge=0, le=1e9)]
_Share = Annotated[float, Field(gt=0, le=1e9)]
_Said = Annotated[str, Field(max_length=10_000)]
_Text = Annotated[str, Field(max_length=200_000)]
_Number = Annotated[int, Field(ge=0, lt=10 * MOST_TRIALS)]
_Scalar = Annotated[str, Field(max_length=1000)] | bool | _Figure
T = TypeVar("T", bound=BaseModel)


class _Told(BaseModel):
    """Other entries are another version's, and are not read."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, extra="ignore")


class Facts(_Told):
    """Of the study.

    Attributes:
        model, data, processor: what all workers have to have in common, in words.
        recipe: settings of all trials, as TOML.
        space: what is searched, as `space.written` writes it.
        trials, runs: how many are looked at and carried out.
    """

    model: _Said
    data: _Said
    processor: _Said = ""
    recipe: _Text
    space: _Text
    trials: Annotated[int, Field(ge=1, le=MOST_TRIALS)]
    runs: Annotated[int, Field(ge=1, le=MOST_TRIALS)]


class _LostThere(_Told):
    points: _Figure
    low: _Figure
    high: _Figure
    reason: _Said = ""

    @model_validator(mode="after")
    def _ordered(self) -> _LostThere:
        if self.low > self.high:
            raise ValueError("the interval of what is lost ends before it begins")
        return self


class _OfTrial(_Told):
    """Entries of a trial that `rounds`, `trials` and `front` read."""

    values: dict[str, Annotated[str, Field(max_length=1000)]] | None = None
    look: _Figure | None = None
    look_left: _Share | None = None
    worker: Annotated[str, Field(max_length=500)] = ""
    folder: Annotated[str, Field(max_length=4096)] = ""
    host: _Said = ""
    reason: _Said = ""
    lost: _LostThere | None = None
    test: _Figure | None = None
    test_ci95: tuple[_Figure, _Figure] | None = None
    macs: _Amount | None = None
    params: _Amount | None = None
    seconds: _Amount | None = None
    outcome: _Said = ""
    noisy: bool = False

    @model_validator(mode="after")
    def _written_in_order(self) -> _OfTrial:
        if self.look_left is not None and (self.look is None or self.values is None):
            raise ValueError("a trial that was looked at has values, and what it loses")
        return self


class _OfSystem(_Told):
    fixed_params: dict[str, _Scalar] = Field(default_factory=dict[str, _Scalar])
    retry_history: Annotated[list[_Number], Field(min_length=1, max_length=1000)] | None = None


class _OfQueue(_Told):
    number: _Number


class _OfResult(_Told):
    values: tuple[_Figure, _Amount]


def facts(told: Mapping[str, Any], place: str) -> Facts:
    """What was written down when the study was made.

    Raises:
        BadInput: something is missing, or of another kind than it is written.
    """
    return _checked(Facts, told, f"The study in {place}")


def require_trials(trials: Sequence[FrozenTrial], place: str) -> None:
    """Refuse trials with entries that no worker writes.

    Raises:
        BadInput: says which entry of which trial.
    """
    if len(trials) > 10 * MOST_TRIALS:
        raise BadInput(
            f"The study in {place} has {len(trials)} trials; at most {10 * MOST_TRIALS} are read. Give another --study."
        )
    for trial in trials:
        where = f"Trial {trial.number} of the study in {place}"
        _checked(_OfQueue, {"number": trial.number}, where)
        _checked(_OfTrial, trial.user_attrs, where)
        _checked(_OfSystem, trial.system_attrs, where)
        if trial.values is not None:
            _checked(_OfResult, {"values": trial.values}, where)


def folder_of(told: str, number: int) -> Path | None:
    """The folder of a trial that a study names, if it is here and one that a search makes: a study may name any other."""
    folder = Path(told)
    ours = folder.is_absolute() and folder.parts[-2:] == (FOLDER, f"{number:04d}")
    return folder if ours and folder.is_dir() and not folder.is_symlink() else None


def _checked(kind: type[T], told: Mapping[str, Any], where: str) -> T:
    try:
        # As JSON, of which every storage makes the same: lists there are tuples here.
        return kind.model_validate_json(json.dumps(dict(told)), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        why = f"{name}: {wording.needed(first)}" if name else wording.needed(first)
    except (ValueError, TypeError, RecursionError) as error:
        why = str(error)
    raise BadInput(
        f"{where} is not as a search writes it ({why}). Take a study from a source you trust, or give another --study."
    )


@contextmanager
def readable(place: str) -> Generator[None]:
    """What Optuna makes of a study that something else wrote, or that is damaged, is told in a sentence.

    Raises:
        BadInput: the study cannot be read.
    """
    try:
        yield
    except CompressError:
        raise
    # Its readers have no one class for what damaged bytes make of them.
    except (
        *(ValueError, TypeError, LookupError, AttributeError, AssertionError, ArithmeticError, RecursionError, MemoryError),
        *(RuntimeError, NotImplementedError),
    ) as error:
        said = (str(error).strip() or "no message").splitlines()[0][:200]
        raise BadInput(
            f"The study in {place} cannot be read ({type(error).__name__}: {said}). It is damaged, or of another version of "
            "Optuna. Give another one."
        ) from error
