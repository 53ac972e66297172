"""What of a folder may be a model, and what may be data: looked at by name and only so far down, opened by others."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Architecture:
    """A network class, or a function that gives a network, in a file of a folder.

    Attributes:
        arch: `net.py:Net`.
        needs: arguments without which it cannot be called.
    """

    arch: str
    needs: tuple[str, ...] = ()


def architectures(folder: Path, weights: str = "") -> list[Architecture]:
    """What gives a network in the files of a folder, the likeliest first: read, and never imported.

    Args:
        folder: where.
        weights: name of the file whose weights they are; what is named alike comes before all others.
    """
    found: list[Architecture] = []
    for path in sorted(folder.glob("*.py")):
        try:
            tree = ast.parse(files.text(path))
        except (OSError, ValueError, SyntaxError, RecursionError):
            continue
        found += [Architecture(f"{path.name}:{name}", needs) for name, needs in _makers(tree)]
    return sorted(found, key=lambda one: (bool(one.needs), _unlike(one.arch, weights)))


def _makers(tree: ast.Module) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name and needed arguments of every network class, and of every function of one's own that makes a network."""
    networks = {one.name: one for one in tree.body if isinstance(one, ast.ClassDef) and _of_torch(one)}
    for one in tree.body:
        if isinstance(one, ast.ClassDef) and one.name in networks:
            made = next((inner for inner in one.body if isinstance(inner, ast.FunctionDef) and inner.name == "__init__"), None)
            yield one.name, _needed(made.args)[1:] if made else ()
        # A function that needs arguments may be anything that works with networks, such as a loss.
        elif isinstance(one, ast.FunctionDef) and _gives(one, {*networks, "nn"}) and not _needed(one.args):
            yield one.name, ()


def _gives(function: ast.FunctionDef, networks: set[str]) -> bool:
    """Whether a function that others may call speaks of networks and returns something."""
    inside = list(ast.walk(function))
    named = {getattr(one, "attr", None) or getattr(one, "id", None) for one in inside}
    returns = any(isinstance(one, ast.Return) and one.value is not None for one in inside)
    return not function.name.startswith("_") and bool(named & networks) and returns


def _needed(arguments: ast.arguments) -> tuple[str, ...]:
    """Names of the arguments that have no default."""
    places = [*arguments.posonlyargs, *arguments.args]
    by_name = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    needed = [*places[: len(places) - len(arguments.defaults)], *(one for one, default in by_name if default is None)]
    return tuple(one.arg for one in needed)


def _unlike(arch: str, weights: str) -> int:
    """0 where it is named like the file of the weights, 1 where one name is in the other, 2 elsewhere."""
    name, stem = (re.sub(r"[^a-z0-9]", "", one.lower()) for one in (arch.partition(":")[2], Path(weights).stem))
    return 0 if name == stem else 1 if stem and (name in stem or stem in name) else 2


def _of_torch(defined: ast.ClassDef) -> bool:
    return any(ast.unparse(base).rpartition(".")[2].endswith("Module") for base in defined.bases)


def _of_a_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("recipe.toml", "report.json", "graph.json"))


def _pictures(folder: Path) -> Iterator[Path]:
    return (one for one in islice(folder.rglob("*"), MOST) if one.suffix.lower() in SUFFIXES)
