"""Dense nets and images as every benchmark opens them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from compress.artifact import Artifact
from compress.checkpoint.load import open_artifact


def open_dense(nets: Path, name: str) -> Artifact:
    """A reference net by its factory's name in nets.py, traced."""
    return open_artifact(nets / f"{name}.pt", arch=f"{nets / 'nets.py'}:{name}", input_shapes=((3, 32, 32),))


def decoded(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """x_train, y_train, x_test, y_test of an image folder train/CLASS/*.jpg, test/CLASS/*.jpg."""
    for part in ("train", "test"):
        classes = sorted(p.name for p in (folder / part).iterdir())
        files = [(path, number) for number, name in enumerate(classes) for path in sorted((folder / part / name).iterdir())]
        yield f"x_{part}", np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in files])
        yield f"y_{part}", np.array([number for _, number in files])
