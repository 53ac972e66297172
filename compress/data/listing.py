"""Image files below a folder, links to folders included."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from compress.data.images import SUFFIXES
from compress.errors import BadInput


@dataclass(frozen=True)
class Found:
    """What lies below a folder.

    Attributes:
        images: sorted by path.
        others: files that are no images by their suffix.
        odd: no regular files (pipes, sockets, devices, broken links), and links to folders that were read already.
    """

    images: tuple[Path, ...]
    others: int
    odd: tuple[str, ...]


def image_files(root: Path, deep: bool) -> Found:
    """Image files of a folder, and of the folders in it where `deep`.

    Raises:
        BadInput: a folder cannot be listed.
    """
    images, others, odd = list[Path](), 0, list[str]()
    # A link to a folder around this one would lead in a circle, and the pictures of all classes into this one.
    seen = {_identity(folder) for folder in (*root.absolute().parents, *root.resolve().parents)}
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        if (here := _identity(folder)) in seen:
            odd.append(f"{folder} (a link to a folder that is read already)")
            continue
        seen.add(here)
        for entry in _entries(folder):
            path, hidden = Path(entry.path), entry.name.startswith(".")
            if entry.is_dir():
                waiting += [path] * (deep and not hidden)
            elif hidden or path.suffix.lower() not in SUFFIXES:
                others += 1
            elif entry.is_file():
                images.append(path)
            else:
                odd.append(f"{path} (no regular file)")
    return Found(tuple(sorted(images)), others, tuple(sorted(odd)))


def _identity(folder: Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    try:
        # Backwards, as the last one that waits is read first.
        with os.scandir(folder) as entries:
            yield from sorted(entries, key=lambda entry: entry.name, reverse=True)
    except OSError as error:
        raise BadInput(f"{folder} cannot be listed ({error.strerror}). Make it readable, or take it away.") from error
