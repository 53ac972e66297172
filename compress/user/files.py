"""Text files that somebody gives: of a bounded size, and files."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

MOST = 64 * 2**20
"""Bytes; a plan of a network with 10,000 layers has a tenth of it."""


def text(path: Path) -> str:
    """What stands in a file.

    Raises:
        OSError: it cannot be read, is no file (a pipe would be waited for, a device has no end), or is too large.
        UnicodeDecodeError: it is no text.
    """
    return content(path).decode("utf-8")


def json_text(value: object) -> str:
    """JSON that people can look through: a list of numbers or words stands on one line."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)

    def joined(found: re.Match[str]) -> str:
        return " ".join(line.strip() for line in found[0].split("\n")[1:-1]).join("[]")

    # No word of JSON has a line break inside, so that every one here lies between two words.
    return re.sub(r"\[\n[^\[\]{}]*?\n\s*\]", joined, text)


def told(error: BaseException) -> str:
    """What went wrong with a file, in words: without the number and the path that Python puts around them."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)


def content(path: Path, most: int = MOST) -> bytes:
    """The bytes of a file.

    Raises:
        OSError: as for `text`.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe, socket or device"
        raise OSError(0, f"it is {what}", str(path))
    if found.st_size > most:
        raise OSError(0, f"it has {found.st_size} bytes, at most {most} are read", str(path))
    return path.read_bytes()
