"""A plan: what is to be done to a model, as plain data.

A plan is made once (`compress plan`) and can be replayed on any checkpoint of the same architecture (`compress apply`).
It holds decisions: `Keep("layer1.0.conv1", 64, (0, 2, 5))` says which of the 64 output channels of that layer stay, `Merge` which
layers become one. Everything that hangs on those layers (norms, consumers, the other branches of a sum) follows from the graph.
The only numbers of a model in it are the affine functions that `Linearize` puts in place of an activation.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from compress.errors import BadInput
from compress.user import files, wording

SCHEMA = 1


@dataclass(frozen=True)
class Keep:
    """Channels that stay in one group; `layer` is the name of the group, its first producer."""

    layer: str
    channels: int
    keep: tuple[int, ...]

    def __post_init__(self) -> None:
        ordered = tuple(sorted(set(self.keep)))
        if ordered != self.keep or not self.keep or self.keep[0] < 0 or self.keep[-1] >= self.channels:
            raise BadInput(
                f"The plan keeps channels {list(self.keep)[:8]} of {self.layer}; needed are distinct, ascending numbers "
                f"from 0 to {self.channels - 1}, at least one. Make the plan again with 'compress plan'."
            )


@dataclass(frozen=True)
class Linearize:
    """The activation module `layer` becomes the affine function slope * x + offset of each of its channels.

    `slope` and `offset` have a number for each channel; both empty stand for the identity.
    """

    layer: str
    channels: int
    slope: tuple[float, ...] = ()
    offset: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        sizes = {len(self.slope), len(self.offset)}
        if self.channels < 1 or sizes not in ({0}, {self.channels}) or not all(map(math.isfinite, self.slope + self.offset)):
            raise BadInput(
                f"The plan gives {self.layer} {len(self.slope)} slopes and {len(self.offset)} offsets for {self.channels} "
                "channels; needed is a finite number of each per channel, or none. Make the plan again with 'compress plan'."
            )


@dataclass(frozen=True)
class Pointwise:
    """The convolution `layer` loses its window and is 1x1 from then on. Values change: it comes before a refit or fine-tuning."""

    layer: str


@dataclass(frozen=True)
class Relocate:
    """All padding of a chain of layers moves to its first convolution. Border values change: it comes before fine-tuning."""

    layers: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_chain("moves the padding of", self.layers)

    @property
    def layer(self) -> str:
        """The first layer, which takes the padding."""
        return self.layers[0]


@dataclass(frozen=True)
class Merge:
    """A chain of layers becomes one layer under the first name; the model computes what it did.

    `layers` are the convolutions, linear layers and pools in the order in which they run, those on a skip connection included,
    and the sums by the names of their nodes; norms and linearized activations between them, and behind the last one, go in with
    them.
    """

    layers: tuple[str, ...]

    def __post_init__(self) -> None:
        _check_chain("merges", self.layers)

    @property
    def layer(self) -> str:
        """The first layer, whose name the merged one has."""
        return self.layers[0]


def _check_chain(does: str, layers: tuple[str, ...]) -> None:
    if len(layers) < 2 or len(set(layers)) < len(layers):
        raise BadInput(
            f"The plan {does} {list(layers)[:8]}; needed are two or more layers, each once. "
            "Make the plan again with 'compress plan'."
        )


@dataclass(frozen=True)
class Factor:
    """The layer becomes two with `rank` channels between them, which its own weights allow; the model computes what it did."""

    layer: str
    rank: int

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise BadInput(f"The plan gives {self.layer} the rank {self.rank}; needed is 1 or more. Make the plan again.")


Edit = Keep | Linearize | Pointwise | Relocate | Merge | Factor
KINDS: dict[type[Edit], str] = {
    Keep: "keep",
    Linearize: "linearize",
    Pointwise: "pointwise",
    Relocate: "relocate",
    Merge: "merge",
    Factor: "factor",
}


@dataclass(frozen=True)
class Plan:
    """Edits in the order in which they apply. `align` is the multiple that channel counts were rounded to (1: none)."""

    edits: tuple[Edit, ...] = ()
    method: str = ""
    align: int = 1

    def then(self, *edits: Edit) -> Plan:
        """The plan with further edits behind those it has."""
        return Plan(self.edits + edits, self.method, self.align)

    def to_json(self) -> str:
        """JSON: the same plan gives the same bytes."""
        return files.json_text(self._values()) + "\n"

    def _values(self) -> dict[str, Any]:
        edits = [{"edit": KINDS[type(e)], **dataclasses.asdict(e)} for e in self.edits]
        return {"schema": SCHEMA, "method": self.method, "align": self.align, "edits": edits}

    @property
    def digest(self) -> str:
        """SHA-256 of its canonical JSON, which is not how it is laid out in a file."""
        return hashlib.sha256((json.dumps(self._values(), indent=1) + "\n").encode()).hexdigest()


def from_json(text: str) -> Plan:
    """Read a plan back.

    Raises:
        BadInput: not JSON, another schema, an edit kind that is not known, or an edit that cannot be.
    """
    try:
        data = _WHOLE.validate_python(files.parsed_json(text))
        if data.version != SCHEMA:
            raise BadInput(f"The plan is of schema {data.version}, and not of {SCHEMA}. Make it again with 'compress plan'.")
        found = [_edit(number, each) for number, each in enumerate(data.edits)]
    except ValidationError as error:
        raise _refused("The plan", error) from error
    except ValueError as error:
        raise BadInput(f"The plan cannot be read ({error}). Make it again with 'compress plan'.") from error
    return Plan(tuple(found), data.method, data.align)


class _Whole(BaseModel):
    """A plan's file, its edits as they stand there."""

    model_config = ConfigDict(strict=True, extra="forbid")
    version: int = Field(alias="schema")
    method: str = ""
    align: int = Field(1, ge=1, le=1 << 16)
    edits: list[dict[str, Any]]


_WHOLE = TypeAdapter(_Whole)
_READERS: dict[type[Edit], TypeAdapter[Edit]] = {kind: TypeAdapter(kind) for kind in KINDS}


def _refused(what: str, error: ValidationError) -> BadInput:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "it"
    return BadInput(f"{what} cannot be read ({where}: {wording.needed(first)}). Make it again with 'compress plan'.")


MODELS = (".pt", ".pth", ".ckpt", ".safetensors", ".pkl")
"""How files of models are called."""


def read(path: Path) -> Plan:
    """A plan from its file.

    Raises:
        BadInput: it cannot be read.
    """
    try:
        return from_json(files.text(path))
    except (OSError, UnicodeDecodeError) as error:
        if path.suffix in MODELS or (path / "graph.json").exists():
            raise BadInput(
                f"{path} is a model, where a plan was needed. The plan comes first: 'compress apply PLAN MODEL'."
            ) from error
        raise BadInput(
            f"The plan {path} cannot be read ({files.told(error)}). Give the plan.json of 'compress plan' or of a run."
        ) from error


def _edit(number: int, data: Mapping[str, Any]) -> Edit:
    name, rest = data.get("edit"), {name: value for name, value in data.items() if name != "edit"}
    kind = next((kind for kind, known in KINDS.items() if known == name), None)
    if kind is None:
        known = ", ".join(f"'{name}'" for name in KINDS.values())
        raise BadInput(
            f"The plan has an edit of kind {wording.quoted(name)}, known are {known}. A newer version may have made it: upgrade."
        )
    if odd := rest.keys() - {field.name for field in dataclasses.fields(kind)}:
        raise BadInput(
            f"Edit {number + 1} of the plan has {wording.quoted(min(odd))}, nothing that a '{name}' has. A newer version "
            "may have made it: upgrade."
        )
    try:
        # As JSON, in which a list may become a tuple, and nothing else anything.
        return _READERS[kind].validate_json(json.dumps(rest), strict=True)
    except ValidationError as error:
        raise _refused(f"Edit {number + 1} of the plan", error) from error
