"""Words for what a checker found wrong with a value, and for numbers of things."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NEEDED = {
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of {ge:g} or more",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of {le:g} or less",
    "finite_number": "a finite number",
    "literal_error": "one of {expected}",
    "enum": "one of {expected}",
    "too_short": "{min_length} or more values, not {actual_length}",
    "too_long": "{max_length} values at most, not {actual_length}",
    "string_pattern_mismatch": "a text of the form {pattern}",
    "string_too_short": "a text that is not empty",
    "extra_forbidden": "a name that is known here",
    "missing": "an entry of this name",
}
"""Kind of error, as the checker calls it -> what is needed instead."""
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text",
    "tuple": "a list",
    "list": "a list",
    "dict": "a table of names and values",
    "model": "a table of names and values",
    "dataclass": "a table of names and values",
    "path": "a path",
    "json": "JSON",
}
"""Beginning of the kinds of error about a value of another type -> what is needed instead."""


def needed(error: Mapping[str, Any]) -> str:
    """What a value should have been, or the sentence of a check of our own, from the first error of a checker.

    Args:
        error: with `type`, `ctx` and `msg`, as pydantic tells it.
    """
    kind, facts = str(error["type"]), dict(error.get("ctx") or {})
    if kind == "value_error":
        return str(facts.get("error", error["msg"]))
    if kind in _NEEDED:
        return f"needed is {_NEEDED[kind].format(**facts)}"
    found = _KINDS.get(kind.partition("_")[0])
    return f"needed is {found}" if found else "needed is another value"


def quoted(value: object) -> str:
    """A value as it was given, as far as a message has room for it."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write whole numbers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= _ROOM else f"{text[:_ROOM]}..."


_ROOM = 400


def many(count: int, noun: str, plural: str = "") -> str:
    """1 channel, 3 channels; `plural` where that is no s at the end."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
