"""Files that want to harm whoever opens them: a folder to read. `tests/test_attacks.py` opens each of them by every entrance.

An attack is a function that writes one file and says in its docstring what would happen to a program that believes it. Those that
want code to run try to make the folder that is called `canary` here; a program that is not fooled makes none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

Write = Callable[[Path], None]
"""Writes the hostile file, at the path that it gets."""

CANARY = "it-ran"
"""The folder that an attack makes below the current one where it succeeds."""

MODELS: dict[str, Write] = {}
"""Model files and model.compressed folders by name."""


def model(write: Write) -> Write:
    """Put an attack among those on model files."""
    MODELS[_name(write)] = write
    return write


def models(names: Iterable[str], write: Callable[[Path, str], None]) -> None:
    """An attack in many variants, each with a text of its own."""
    for number, name in enumerate(names):
        MODELS[f"{_name(write)}-{number}"] = lambda path, name=name: write(path, name)


def _name(write: Callable[..., None]) -> str:
    return f"{write.__module__.rpartition('.')[2]}.{write.__name__}"
