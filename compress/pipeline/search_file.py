"""`search.json`, read again by a run that goes on: somebody else may have written it, so only what a search writes is taken.

A search decides how much is removed, how channel counts are rounded, and whether depth goes before width or not at all. No other
setting may stand there: a loss or a device would be code that runs, or a machine that is called.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from compress.errors import BadInput
from compress.user import files, wording

FILE = "search.json"
_MOST = 4 * 2**20  # bytes; a search of a large network for a time has a tenth of it
_Amount = Annotated[float, Field(ge=0, le=1e9)]
_Share = Annotated[float, Field(gt=0, le=1)]
_Multiple = Annotated[int, Field(ge=1, le=64)]
T = TypeVar("T", bound="_Part")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class _Times(_Part):
    kinds: dict[str, tuple[_Amount, _Amount, _Amount, _Amount]] = Field(max_length=10_000)
    rest: tuple[_Amount, _Amount]
    multiple: _Multiple


class _Budget(_Part):
    times: _Times
    ms: Annotated[float, Field(gt=0, le=1e9)]
    batch: Annotated[int, Field(ge=1, le=10**6)]


class _Settings(_Part):
    order: Literal["depth-width"] | None = None
    depth: Annotated[float, Field(ge=0, le=0)] | None = None

    def given(self) -> dict[str, Any]:
        """Those that stand there."""
        return self.model_dump(exclude_none=True)


class Aimed(_Part):
    """What a search for a time or for memory ended with; its looks are for people and read by nobody."""

    unit: Literal["latency", "memory"]
    target: Annotated[str, Field(pattern=r"^macs=[0-9]\.[0-9]{4}$")]
    align: _Multiple | None
    note: Annotated[str, Field(max_length=100_000)]
    looks: Annotated[list[dict[str, Any]], Field(max_length=1000)]
    time: _Budget | None = None
    settings: _Settings = _Settings()


class _Tried(_Part):
    target: _Share
    lost: Annotated[float, Field(ge=-1e9, le=1e9)]
    low: Annotated[float, Field(ge=-1e9, le=1e9)]
    high: Annotated[float, Field(ge=-1e9, le=1e9)]
    trained: bool
    kept: bool


class Kept(_Part):
    """What a search for the smallest model that keeps a contract tried."""

    unit: Literal["macs", "params"]
    looks: Annotated[list[_Tried], Field(min_length=1, max_length=1000)]


def read(kind: type[T], out: Path, unit: str) -> T | None:
    """What a search of this run wrote into its folder; None where none has ended.

    Args:
        kind: Aimed or Kept.
        out: the folder of the run.
        unit: of what is looked for.

    Raises:
        BadInput: it cannot be read, holds what no search writes, or is of another one.
    """
    place = out / FILE
    try:
        found = kind.model_validate_json(files.text(place, _MOST))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise BadInput(f"{place} cannot be read ({where}: {wording.needed(first)}). Start again with --force.") from error
    except (OSError, ValueError) as error:
        raise BadInput(f"{place} cannot be read ({files.told(error)}). Start again with --force.") from error
    if getattr(found, "unit", "") != unit:
        raise BadInput(f"{place} is of a search in another unit than {unit}. Start again with --force.")
    return found
