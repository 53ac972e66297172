"""Files that are there whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from exporters.errors import ExportError
from exporters.standalone import leftovers


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A file of the same name in a folder of its own beside `path`; moved into place when the block ends well.

    Whatever else the block puts into that folder (weights beside the file) goes with it.
    """
    if path.is_dir():
        raise ExportError(f"{path} is a folder; needed is the path of a file, such as {path / 'model.onnx'}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder: os.replace works within one file system only.
        folder = Path(tempfile.mkdtemp(prefix=leftovers.hidden(path.name), dir=path.parent))
    except OSError as error:
        raise ExportError(f"{path} cannot be written ({error.strerror or error}). Give a path in a folder that can.") from error
    try:
        yield folder / path.name
        # The weights' file first: a model file never stands without them.
        # False sorts before True.
        for file in sorted(folder.iterdir(), key=lambda f: f.name == path.name):
            os.replace(file, path.parent / file.name)
    except OSError as error:
        raise ExportError(f"{path} could not be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(path: Path, content: bytes) -> None:
    """A file of these bytes: readers see the old one or the new one, and after a power cut, too.

    Raises:
        OSError: as the system says it; nothing is left behind.
    """
    part = path.with_name(f"{leftovers.hidden(path.name)}part")
    try:
        with part.open("wb") as file:
            file.write(content)
            # Renaming before the bytes are on the disk could leave an empty file after a power cut.
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    # Only the system's own errors; the part of a killed process says in its name whose it was.
    except OSError:
        part.unlink(missing_ok=True)
        raise


def total_bytes(staged_file: Path) -> int:
    """Size of a staged file, with what lies beside it."""
    return sum(file.stat().st_size for file in staged_file.parent.iterdir())


def sha256(path: Path) -> str:
    """Digest of one file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
