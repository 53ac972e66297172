"""Names of the parts of data, as folders and files are called after them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def by_part(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Files by part, which words of their name, or of their folder's, tell; where there is no train, all are one part."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        words = [PARTS[word] for word in re.split(r"[^a-z]+", f"{path.parent.name} {path.stem}".lower()) if word in PARTS]
        found.setdefault(words[-1] if words else "train", []).append(path)
    return found if "train" in found else {"train": list(paths)}
