"""Values as TOML writes them: Python reads the format and does not write it."""

from __future__ import annotations

import json
from typing import Any


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_quoted(k)} = {toml(v)}" for k, v in value.items() if v is not None) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml(v) for v in value) + "]"
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _quoted(text: str) -> str:
    """As in JSON, but for what TOML has otherwise: characters beyond 16 bits are written as they are, DEL is not."""
    found = json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
    # Halves of a pair, as names of files that are no text have them: no file of text holds them.
    return "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in found)
