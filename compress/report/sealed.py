"""The checksum inside a JSON file that a verdict depends on: was it changed after it was written?

    checksum = sha256 of everything else, as  json.dumps(values, sort_keys=True, separators=(",", ":"))

Spaces, line ends and the order of entries do not count, so a file may be formatted anew. Whoever edits one on purpose removes the
entry. It finds damage, not a sender who writes a checksum of his own: only a signature does that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

from pydantic import ValidationError

from compress.errors import BadInput
from compress.user import files, wording

ENTRY = "checksum"
CHANGED = (
    f"It was changed after it was written: its {ENTRY} is not that of what it holds. "
    f"Take the file as it was written, or make it again; whoever edited it on purpose removes the entry '{ENTRY}'"
)
UNKNOWN = "has no checksum, so damage to it could not be looked for"
"""What is told of a file without the entry, after its name."""


def checksum(values: Mapping[str, Any]) -> str:
    """Of everything but the entry itself."""
    rest = {key: value for key, value in values.items() if key != ENTRY}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def text(values: Mapping[str, Any]) -> str:
    """The file: the values, and their checksum at the end."""
    rest = {key: value for key, value in values.items() if key != ENTRY}
    return json.dumps({**rest, ENTRY: checksum(rest)}, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def check(found: str) -> None:
    """Compare a file with its checksum. What has none, or is no JSON object, passes: the reader says what it lacks.

    Raises:
        BadInput: it was changed after it was written.
    """
    try:
        values = files.parsed_json(found)
        if not isinstance(values, dict) or cast("dict[str, Any]", values).get(ENTRY) is None:
            return
        same = values[ENTRY] == checksum(cast("dict[str, Any]", values))
    except ValueError:  # no JSON, or none that anybody writes
        return
    if not same:
        raise BadInput(f"{CHANGED}.")


def refused(error: ValidationError, schema: int) -> str:
    """The first field that is wrong, and what to do; a schema of another age than `schema` is told apart from nonsense."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if where == "schema" and isinstance(first["input"], int):
        age, remedy = ("newer", "install a newer compress") if first["input"] > schema else ("older", "make the file again")
        return f"its schema {first['input']} is {age} than {schema}, the one that this version reads: {remedy}"
    return f"{where or 'the file'}: {wording.needed(first)}, in a file of schema {schema}, as 'compress run' writes it"
