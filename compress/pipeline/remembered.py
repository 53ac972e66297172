"""What was measured on this machine, by key, in a file of the user's cache folder (`COMPRESS_CACHE` names another).

A file that is damaged, is none, or cannot be written is ignored, and so is an entry that nobody measured: it spares time, and
nothing depends on it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from compress.user import files
from compress.user.cache_folder import cache_folder
from exporters import atomic

T = TypeVar("T")
_KEPT = 5000  # entries; older ones are dropped
_LARGEST = 1e9
"""Of a time in milliseconds, a speed-up, or a count: what is beyond was not measured."""


def recalled(file: str, kind: type[Any]) -> dict[str, dict[str, Any]]:
    """Entries that have the fields of a dataclass, and no others: another version has written those."""
    folder = cache_folder()
    try:
        found = files.json_in(folder / file)
    except (OSError, ValueError):
        return {}
    fields = {f.name for f in dataclasses.fields(kind)}
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, dict) and set(value) == fields}


def made(kind: type[T], entry: Mapping[str, Any] | None) -> T | None:
    """What an entry was made of; None where there is none, or its values are not those of a measurement.

    Args:
        kind: a dataclass of numbers, none of which is negative, and texts.
        entry: its fields.
    """
    try:
        return None if entry is None or not _measured(entry) else TypeAdapter(kind).validate_json(json.dumps(entry), strict=True)
    except ValidationError:
        return None


def _measured(value: object) -> bool:
    if isinstance(value, Mapping | list | tuple):
        inside = cast("Mapping[str, Any]", value).values() if isinstance(value, Mapping) else cast("list[Any]", value)
        return all(map(_measured, inside))
    # Infinity and NaN are not between the two.
    return not isinstance(value, int | float) or 0 <= value <= _LARGEST


def remember(file: str, kind: type[Any], known: Mapping[str, dict[str, Any]]) -> None:
    """Write entries beside those that are there: what another process measured meanwhile stays."""
    newest = dict(list((recalled(file, kind) | dict(known)).items())[-_KEPT:])
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        atomic.write(cache_folder() / file, json.dumps(newest).encode())
    except OSError:
        return
