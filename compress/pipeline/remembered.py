"""What was measured on this machine, by key, in a file of the user's cache folder (`COMPRESS_CACHE` names another).

A file that is damaged or cannot be written is ignored: it spares time, and nothing depends on it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from compress.user.cache_folder import cache_folder
from exporters import atomic

_KEPT = 5000  # entries; older ones are dropped


def recalled(file: str, kind: type[Any]) -> dict[str, dict[str, Any]]:
    """Entries that have the fields of a dataclass, and no others: another version has written those."""
    folder = cache_folder()
    try:
        found = json.loads((folder / file).read_text())
    except (OSError, ValueError):
        return {}
    fields = {f.name for f in dataclasses.fields(kind)}
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, dict) and set(value) == fields}


def remember(file: str, kind: type[Any], known: Mapping[str, dict[str, Any]]) -> None:
    """Write entries beside those that are there: what another process measured meanwhile stays."""
    newest = dict(list((recalled(file, kind) | dict(known)).items())[-_KEPT:])
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        atomic.write(cache_folder() / file, json.dumps(newest).encode())
    except OSError:
        return
