"""What a run calls its files and folders. No torch: commands that pack or show a run start without it."""

from __future__ import annotations

from pathlib import Path

import exporters
from compress.pipeline.lock import NAME as LOCK
from compress.report.html import PAGE

_FILES = tuple(f"model{ending}" for ending in exporters.ENDING.values())
_WEIGHTS = ("model.bin", "model.int8.bin", "model.onnx.data")
_TEXTS = ("plan.json", "recipe.toml", "search.json", "report.json", "report.md", PAGE)
OURS = ("stages", "pictures", "profile", "trackers", "model.compressed", *_FILES, *_WEIGHTS, *_TEXTS)
LEFT = tuple(f".{ours}." for ours in OURS)
"""How names begin of what a killed run left."""


def is_of_a_run(name: str) -> bool:
    """Whether a run gives a file or a folder of its own this name."""
    return name == LOCK or name in OURS or name.startswith(LEFT)


def run_of(place: Path) -> Path | None:
    """The folder of the run that a file belongs to, ended or not; None where it belongs to none.

    A recipe alone makes no run: people write theirs beside their own reports.
    """
    place = place.resolve()
    for folder in place.parents:
        begun = any((folder / made).exists() for made in ("report.json", "stages", LOCK))
        if (folder / "recipe.toml").is_file() and begun and is_of_a_run(place.relative_to(folder).parts[0]):
            return folder
    return None


def of_run(folder: Path) -> list[Path]:
    """Files and folders of a run in its folder."""
    return sorted(path for path in folder.iterdir() if is_of_a_run(path.name))
