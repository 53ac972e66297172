"""What a command writes where it was told to: whole or not at all, and over nothing that was not asked for."""

from __future__ import annotations

import os
from pathlib import Path

from compress.errors import BadInput
from compress.user import files
from exporters import atomic


def write_text(path: Path, text: str, option: str = "--out") -> None:
    """A text file; `option` is what the place was given by."""
    write_bytes(path, text.encode(), f"Give another {option}.")


def write_bytes(path: Path, content: bytes, remedy: str) -> None:
    """A file; `remedy` is what to do where it cannot be written."""
    try:
        atomic.write(path, content)
    except OSError as error:
        raise BadInput(f"{path} cannot be written ({error.strerror or error}). {remedy}") from error


def apart(out: Path, *read: object, option: str = "--out") -> None:
    """Refuse a place that is what the command reads, lies in it, or has it inside: it would go before, or with, the result."""
    for one in read:
        if isinstance(one, str | Path) and out.exists() and (files.among(one, [out]) or files.among(out, [Path(one)])):
            raise BadInput(f"{option} {out} would replace {one}, from which it is made. Give another {option}.")


def free(out: Path, force: bool, *read: object) -> None:
    """Refuse to write over what is there, before any work is done; over what the command reads, with `force`, too."""
    files.spelled(out)
    # lexists: a link that leads nowhere is there, too.
    if os.path.lexists(out) and not force:
        raise BadInput(f"{out} exists already. Give another --out, or --force to replace it.")
    apart(out, *read)
    if not out.parent.is_dir():
        raise BadInput(f"The folder {out.parent} of --out does not exist. Make it, or give another --out.")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise BadInput(f"The folder {out.parent} of --out cannot be written. Give another --out.")
