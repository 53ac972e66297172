"""The checksum inside a JSON file that a verdict depends on: was it changed after it was written?

    checksum = sha256 of everything else, as  json.dumps(values, sort_keys=True, separators=(",", ":"))

Spaces, line ends and the order of entries do not count, so a file may be formatted anew. Whoever edits one on purpose removes the
entry. It finds damage, not a sender who writes a checksum of his own: only a signature does that.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, cast

from pydantic import ValidationError

from compress.errors import BadInput
from compress.user import files, wording

ENTRY = "checksum"
_DIGITS = re.compile(r"[0-9]{300}")
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


def in_lines(found: str) -> str:
    """The file with each of its words on one line: a line of somebody else's in a log may be a command (`::error::`).

    Raises:
        BadInput: it has a number that is no real one, and that no sentence can be made of.
    """
    if _DIGITS.search(found):
        raise BadInput("It has a number of hundreds of digits, which no command writes. Take the file from a source you trust.")
    if re.search(r"\\[nrfv]|\\u|[\x0b\x0c\x85\u2028\u2029]", found) is None:
        return found

    def lined(value: Any) -> Any:
        if isinstance(value, str):
            return " ".join(value.splitlines())
        if isinstance(value, dict):
            return {key: lined(each) for key, each in cast("dict[str, Any]", value).items()}
        return [lined(each) for each in cast("list[Any]", value)] if isinstance(value, list) else value

    try:
        return json.dumps(lined(json.loads(found)))
    except (ValueError, RecursionError):  # refused by whoever reads it
        return found


def refused(error: ValidationError, schema: int) -> str:
    """The first field that is wrong, and what to do; a schema of another age than `schema` is told apart from nonsense."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if where == "schema" and isinstance(first["input"], int):
        age, remedy = ("newer", "install a newer compress") if first["input"] > schema else ("older", "make the file again")
        return f"its schema {first['input']} is {age} than {schema}, the one that this version reads: {remedy}"
    return f"{where or 'the file'}: {wording.needed(first)}, in a file of schema {schema}, as 'compress run' writes it"
