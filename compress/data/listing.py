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
        images: as Path sorts them. Text, since a million of Path take longer to make than to find.
        others: files that are no images by their suffix.
        odd: no regular files (pipes, sockets, devices, broken links), links to folders that were read already, hidden folders.
        again: whether there are such links.
    """

    images: tuple[str, ...]
    others: int
    odd: tuple[str, ...]
    again: bool = False


def image_files(root: Path, deep: bool) -> Found:
    """Image files of a folder, and of the folders in it where `deep`.

    Raises:
        BadInput: a folder cannot be listed.
    """
    images, others, odd, again = list[str](), 0, list[str](), False
    # A link to a folder around this one would lead in a circle, and the pictures of all classes into this one.
    seen = {_identity(folder) for folder in (*root.absolute().parents, *root.resolve().parents)}

    def entered(folder: str) -> Iterator[os.DirEntry[str]]:
        nonlocal again
        if (here := _identity(folder)) in seen:
            again = True
            odd.append(f"{folder} (a link to a folder that is read already)")
            return iter(())
        seen.add(here)
        return iter(_entries(folder))

    # Files and folders by name, one below the other: so the paths come out sorted.
    open_ones = [entered(str(root))]
    while open_ones:
        entry = next(open_ones[-1], None)
        if entry is None:
            open_ones.pop()
            continue
        hidden = entry.name.startswith(".")
        if entry.is_dir():
            if hidden:
                odd.append(f"{entry.path} (its name begins with a dot)")
            elif deep:
                open_ones.append(entered(entry.path))
        elif hidden or os.path.splitext(entry.name)[1].lower() not in SUFFIXES:
            others += 1
        elif entry.is_file():
            images.append(entry.path)
        else:
            odd.append(f"{entry.path} (no regular file)")
    return Found(tuple(images), others, tuple(sorted(odd)), again)


def _identity(folder: str | Path) -> tuple[int, int]:
    found = os.stat(folder)
    return found.st_dev, found.st_ino


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise BadInput(f"{folder} cannot be listed ({error.strerror}). Make it readable, or take it away.") from error
