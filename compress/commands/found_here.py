"""What of a folder may be a model, and what may be data: looked at by name and only so far down, opened by others."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from compress.data.images import SUFFIXES
from compress.edits import MODELS
from compress.user import files

MOST = 5000
"""Entries below a folder that are looked at for a picture."""


def models(folder: Path) -> list[str]:
    """Names of what looks like a trained model, those in folders of their own last."""
    there = sorted(folder.iterdir())
    files = [one.name for one in there if one.is_file() and one.suffix in MODELS]
    return files + [one.name for one in there if one.is_dir() and (one / "graph.json").exists()]


def sources(folder: Path) -> list[str]:
    """Names of what looks like data: arrays, and folders with pictures in them."""
    there = [one for one in sorted(folder.iterdir()) if not one.name.startswith(".")]
    found = [one.name for one in there if one.is_file() and one.suffix == ".npz"]
    return [one.name for one in there if one.is_dir() and not _of_a_run(one) and any(_pictures(one))] + found


def classes(folder: Path) -> list[str]:
    """`net.py:Net` for every network class in the files of a folder: read, and never imported."""
    found: list[str] = []
    for path in sorted(folder.glob("*.py")):
        try:
            tree = ast.parse(files.text(path))
        except (OSError, ValueError, SyntaxError, RecursionError):
            continue
        found += [f"{path.name}:{one.name}" for one in tree.body if isinstance(one, ast.ClassDef) and _of_torch(one)]
    return found


def _of_torch(defined: ast.ClassDef) -> bool:
    return any(ast.unparse(base).rpartition(".")[2].endswith("Module") for base in defined.bases)


def _of_a_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("recipe.toml", "report.json", "graph.json"))


def _pictures(folder: Path) -> Iterator[Path]:
    return (one for one in islice(folder.rglob("*"), MOST) if one.suffix.lower() in SUFFIXES)
