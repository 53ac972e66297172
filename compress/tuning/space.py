"""Which settings a search tries, and between which values. Whatever the user has set is not searched.

--over method=entropic,obs        one of several values
--over lr=1e-4..1e-2              any number between two, drawn in logarithms where the ends are a factor of ten apart
--over target=0.2..0.8            shares of what is made small: MACs, or parameters where `--minimize` is params or size
"""

from __future__ import annotations

import json
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from compress.errors import BadInput, CompressError
from compress.measure import meant
from compress.pipeline.contract import UNITS
from compress.pipeline.sequence import stages_of
from compress.recipe import Recipe, merged
from compress.user import wording

SEARCHED = (
    *("method", "target", "inputs", "depth", "order", "iterations", "linearize", "align", "calibration", "reconstruct"),
    *("from_scratch", "epochs", "optimizer", "lr", "weight_decay", "batch_size", "warmup", "distill", "temperature"),
    *("entropy_guidance", "precision", "clip", "ema", "export", "calibrator", "int8_error", "qat"),
)
"""Settings of what is done to a model; those of the model, the data (and its split, which the seed draws) and the
measuring are the same for all trials."""
NONE = "none"
"""How a setting is left to its default rule, as lr and align are without a number."""
_LOGARITHMIC = 10.0
_Value = Annotated[str, Field(max_length=200)]


class Suggests(Protocol):
    """The part of an Optuna trial that values come from."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...
    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...


@dataclass(frozen=True)
class Choice:
    """One of several values, as they are written."""

    values: tuple[str, ...]

    def suggested(self, name: str, trial: Suggests) -> str:
        return trial.suggest_categorical(name, self.values)

    def holds(self, text: str) -> bool:
        return text in self.values


@dataclass(frozen=True)
class Range:
    """A number between two; a whole one where `whole`."""

    low: float
    high: float
    whole: bool = False

    def suggested(self, name: str, trial: Suggests) -> str:
        log = self.low > 0 and self.high / self.low >= _LOGARITHMIC
        if self.whole:
            return str(trial.suggest_int(name, int(self.low), int(self.high), log=log))
        return f"{trial.suggest_float(name, self.low, self.high, log=log):.4g}"

    def holds(self, text: str) -> bool:
        try:
            # As it is written, an end may lie beyond itself.
            return float(f"{self.low:.4g}") <= float(text) <= float(f"{self.high:.4g}")
        except ValueError:
            return False


Space = Mapping[str, Choice | Range]


def space(recipe: Recipe, fixed: Collection[str], over: Sequence[str]) -> Space:
    """What is searched: what `over` says, and without it what usually pays, but for the settings that are `fixed`.

    Raises:
        BadInput: a setting that is not searched, values that it does not take, or nothing to search.
    """
    read = [_read(text) for text in over]
    said = dict(read)
    if len(said) < len(read):
        name = next(name for name in said if [one for one, _ in read].count(name) > 1)
        raise BadInput(f"--over {name} is there more than once; needed is one, with all its values. Put them together.")
    if both := [name for name in said if name in fixed]:
        raise BadInput(f"--{_dashed(both[0])} and --over {both[0]} both say what it is. Leave one of them out.")
    usual = {name: values for name, values in _usual(recipe).items() if name not in fixed}
    found = {**({"target": usual["target"]} if "target" in usual else {}), **said} if said else usual
    if not found:
        raise BadInput("Every setting that is searched was given; needed is one that is open. Leave --target or --method out.")
    require_possible(recipe, found)
    return found


def require_possible(recipe: Recipe, found: Space) -> None:
    """Refuse values that a setting does not take.

    Raises:
        BadInput: names the first one.
    """
    for name, values in found.items():
        for text in values.values if isinstance(values, Choice) else (f"{values.low:g}", f"{values.high:g}"):
            try:
                stages_of(recipe_of(recipe, {name: text}))
            except CompressError as error:
                raise BadInput(f"--over {name} cannot be {text}: {error}") from error


def require_inside(found: Space, values: Mapping[str, str]) -> None:
    """Refuse values of a trial that are not among what is searched: whoever worked on the study may have written them.

    Raises:
        BadInput: names the first one.
    """
    for name, text in values.items():
        if name not in found or not found[name].holds(text):
            raise BadInput(f"The study has a trial with {name} = {text[:80]}, which is not among what it searches.")


def recipe_of(base: Recipe, values: Mapping[str, str]) -> Recipe:
    """The recipe with values as they are written in a search.

    Raises:
        BadInput: one that the setting does not take, or settings that do not go together.
    """
    return merged(base.model_dump(), {name: _valued(base, name, text) for name, text in values.items()})


def suggested(found: Space, trial: Suggests) -> dict[str, str]:
    """The values of one trial."""
    return {name: values.suggested(name, trial) for name, values in found.items()}


def usual_first(found: Space) -> list[dict[str, Any]]:
    """Trials to begin with: the defaults at four sizes, so that no search ends below what a user would have tried."""
    sizes: Sequence[Any] = (0.5, 0.35, 0.25, 0.7)
    target = found.get("target")
    if isinstance(target, Choice):
        sizes = target.values[: len(sizes)]
    elif isinstance(target, Range):
        sizes = [share for share in sizes if target.low <= share <= target.high]
    usual = {name: values.values[0] for name, values in found.items() if isinstance(values, Choice) and name != "target"}
    return [{**usual, "target": size} for size in sizes] if target else [usual]


def written(found: Space) -> str:
    """As text, for a study that others join."""
    return json.dumps({name: list(v.values) if isinstance(v, Choice) else asdict(v) for name, v in found.items()})


class _Between(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    low: float
    high: float
    whole: bool = False


_WRITTEN = TypeAdapter(dict[str, Annotated[list[_Value], Field(min_length=1, max_length=1000)] | _Between])


def read(text: str, recipe: Recipe) -> Space:
    """The space that `written` wrote, for trials of a recipe; a stranger may have written it.

    Only settings that are searched may stand there, of which none names code, a file or a machine.

    Raises:
        BadInput: it is something else, or a setting does not take one of the values.
    """
    try:
        told = _WRITTEN.validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{first['loc'][0]}: " if first["loc"] else ""
        raise BadInput(
            f"What the study searches cannot be read ({where}{wording.needed(first)}). Take a study from a source you trust."
        ) from error
    found: dict[str, Choice | Range] = {
        name: Choice(tuple(one)) if isinstance(one, list) else Range(one.low, one.high, one.whole) for name, one in told.items()
    }
    odd = next((name for name, one in found.items() if name not in SEARCHED or not _possible(name, one)), None)
    if odd is not None or not found:
        why = f"{odd[:80]} is nothing that a search tries so" if odd is not None else "it is nothing"
        raise BadInput(f"What the study searches cannot be read ({why}). Take a study from a source you trust.")
    try:
        require_possible(recipe, found)
    except BadInput as error:
        raise BadInput(f"What the study searches cannot be tried: {error}") from error
    return found


def _possible(name: str, one: Choice | Range) -> bool:
    return isinstance(one, Choice) or (one.low < one.high and one.whole == _whole(name))


def _usual(recipe: Recipe) -> Space:
    found: dict[str, Choice | Range] = {
        "method": Choice(("entropic", "obs", "magnitude")),
        "target": Range(0.1, 0.9),
        "reconstruct": Choice(("0", "100")),
    }
    if recipe.epochs > 0:
        found |= {"iterations": Choice(("1", "2", "3")), "lr": Choice((NONE, "0.0003", "0.001", "0.003"))}
        if recipe.depth != 0:
            found |= {"order": Choice(("width-depth", "depth-width"))}
    if recipe.minimize in ("size", "latency"):
        found |= {"export": Choice(("onnx", "onnx+onnx-int8"))}
    return found


def _read(text: str) -> tuple[str, Choice | Range]:
    name, equals, values = (part.strip() for part in text.partition("="))
    name = name.replace("-", "_")
    if not equals or not values:
        raise BadInput(f"--over is '{text}'; needed is NAME=VALUE,VALUE or NAME=LOW..HIGH, such as lr=1e-4..1e-2.")
    if name not in SEARCHED:
        raise BadInput(
            f"--over names '{name}', which is not searched; what is: {', '.join(SEARCHED)}.{meant.one_of(name, SEARCHED)}"
        )
    low, dots, high = values.partition("..")
    if not dots:
        return name, Choice(tuple(dict.fromkeys(part.strip() for part in values.split(",") if part.strip())))
    try:
        ends = float(low), float(high)
    except ValueError:
        raise BadInput(f"--over {name} is '{values}'; needed are two numbers, such as 1e-4..1e-2.") from None
    if not ends[0] < ends[1] < float("inf"):
        raise BadInput(f"--over {name} goes from {low} to {high}; needed is a smaller number first, then a larger one.")
    return name, Range(*ends, whole=_whole(name))


def _whole(name: str) -> bool:
    return int in _kinds(name) and float not in _kinds(name)


def _valued(base: Recipe, name: str, text: str) -> Any:
    if name == "export":
        return tuple(text.split("+"))
    if name == "target" and "=" not in text:
        return f"{UNITS[base.minimize]}={text}"
    return None if text == NONE and type(None) in _kinds(name) else text


def _kinds(name: str) -> tuple[Any, ...]:
    annotation = Recipe.model_fields[name].annotation
    return typing.get_args(annotation) or (annotation,)


def _dashed(name: str) -> str:
    return name.replace("_", "-")
