"""Plain JPEGs of the wanted size, decoded by torchvision: more quickly than by Pillow, the same pixels.

Both libraries are made around libjpeg, each with one of its own; that the two agree here is tried once. Whatever is damaged, or
anything else than 8-bit colors in a file that begins as every camera's does, is left to Pillow.
"""

from __future__ import annotations

import functools
import io
import os
from typing import BinaryIO

import numpy as np
import torch
import torchvision  # noqa: F401  # pyright: ignore[reportUnusedImport]  it registers the operation that is used below
from PIL import Image

_BEGINNING = b"\xff\xd8"
_PASSED = frozenset((*range(0xE0, 0xF0), 0xC4, 0xDB, 0xDD, 0xFE))
"""Segments that may stand in front of the frame: applications' own, tables, comments. Each says its length."""
MOST_SCANS = 100
"""A progressive picture has about ten."""
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive
_TRIED = (((32, 32), 2, False), ((37, 51), 2, False), ((48, 30), 1, True), ((33, 40), 0, False))
"""Size, sampling of the colors (0: every pixel, 2: one in four) and whether progressive."""


def plain(path: str | os.PathLike[str] | BinaryIO, size: tuple[int, int]) -> np.ndarray | None:
    """(height, width, 3) of a JPEG of 8-bit colors and that size; None of any other file, which is at its beginning again."""
    if not _agreeing():
        return None
    if isinstance(path, str | os.PathLike):
        with open(path, "rb") as opened:
            data = opened.read()
    else:
        data = path.read()
        path.seek(0)
    # Before anything is decoded: a few bytes may ask for any size.
    if frame(data) != (8, *size, 3) or scans(data) > MOST_SCANS:
        return None
    try:
        return _decode(data)
    except RuntimeError:  # damaged: Pillow says how
        return None


def scans(data: bytes) -> int:
    """How often a JPEG goes through its pixels, at most: each time takes as long as all of a plain one."""
    return data.count(b"\xff\xda")  # within pixels no other byte than 0 stands behind 255


def frame(data: bytes) -> tuple[int, int, int, int] | None:
    """Bits, height, width and number of colors that a JPEG says of itself; None where it begins otherwise than usual."""
    at = len(_BEGINNING)
    if not data.startswith(_BEGINNING):
        return None
    while at + 10 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind in _FRAMES:
            return data[at + 4], data[at + 5] << 8 | data[at + 6], data[at + 7] << 8 | data[at + 8], data[at + 9]
        if kind not in _PASSED:
            return None
        at += 2 + (data[at + 2] << 8 | data[at + 3])
    return None


def _decode(data: bytes) -> np.ndarray:
    # The operation itself: the function around it warns that a later torchvision will not have it.
    found: torch.Tensor = torch.ops.image.decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), 0)
    return found.permute(1, 2, 0).numpy()


@functools.cache
def _agreeing() -> bool:
    """Whether both give the same pixels of some pictures of every kind that is meant here."""
    drawn = np.random.default_rng(0)
    for (height, width), sampling, progressive in _TRIED:
        coarse = drawn.integers(0, 256, (-(-height // 4), -(-width // 4), 3), np.uint8)
        picture = Image.fromarray(coarse.repeat(4, 0).repeat(4, 1)[:height, :width])
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=80, subsampling=sampling, progressive=progressive)
        try:
            found = _decode(file.getvalue())
        except (AttributeError, RuntimeError):  # torchvision may be made without JPEG
            return False
        if not np.array_equal(found, np.asarray(Image.open(file))):
            return False
    return True
