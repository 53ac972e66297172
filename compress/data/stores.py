"""Where samples live: in one tensor, in image files, or in somebody's data set.

A store has a length and `read(index)`; everything above it (splits, batches, augmentation) is the same for all three.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from compress.errors import BadInput

CHUNK = 256  # files per task of the decoding pool: far above the cost of a task, small enough to balance
IGNORE = 255  # class number of mask pixels that count for nothing
WHOLE = ("classification", "segmentation", "text")
"""Tasks whose targets are numbers of classes."""


class Store(Protocol):
    """Samples by number. `broken` fills as samples turn out to be unreadable: number -> what is wrong."""

    @property
    def broken(self) -> dict[int, str]: ...

    def __len__(self) -> int: ...

    def read(self, index: Tensor) -> Tensor:
        """Samples, stacked; an unreadable one is zero and stands in `broken` afterwards."""
        ...


@dataclass(frozen=True)
class Stored:
    """All samples in one tensor (n, ...)."""

    values: Tensor
    broken: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    def read(self, index: Tensor) -> Tensor:
        return self.values[index]


@dataclass(frozen=True)
class Files:
    """Image files, decoded when they are read, by several threads.

    Attributes:
        size: (height, width) that every sample gets.
        channels: 1 or 3; 0 for a mask of class numbers, read as it is, (height, width).
        resize: None (another size is an error), "crop" (cover, then cut the center) or "stretch".
    """

    paths: tuple[Path, ...]
    size: tuple[int, int]
    channels: int
    resize: str | None = None
    broken: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: Tensor) -> Tensor:
        numbers = index.tolist()
        shape = self.size if self.channels == 0 else (*self.size, self.channels)
        out = np.zeros((len(numbers), *shape), np.uint8)

        def decode(start: int) -> None:
            for row in range(start, min(start + step, len(numbers))):
                try:
                    out[row] = pixels(self.paths[numbers[row]], self.size, self.channels, self.resize)
                except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                    self.broken[numbers[row]] = f"{self.paths[numbers[row]]} ({type(error).__name__}: {error})"

        workers = min(8, os.cpu_count() or 1)
        step = max(1, min(CHUNK, -(-len(numbers) // workers)))
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(decode, range(0, len(numbers), step)))
        images = torch.from_numpy(out)
        return images if self.channels == 0 else channels_first(images)


@dataclass(frozen=True)
class Items:
    """Samples of a map-style data set; `pick` takes the part of an item that this store is about."""

    items: Any
    pick: Callable[[Any], Any]
    broken: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: Tensor) -> Tensor:
        try:
            return torch.stack([to_tensor(self.pick(self.items[i])) for i in index.tolist()])
        except RuntimeError as error:
            raise BadInput(
                f"The data set's items cannot be stacked ({error}). Needed are items of one shape: resize them there."
            ) from error


def pixels(path: Path, size: tuple[int, int], channels: int, resize: str | None) -> np.ndarray:
    """One image file as uint8, (height, width, channels), or (height, width) for a mask.

    Raises:
        OSError, SyntaxError, ValueError: the file is no readable image, or its size is another and `resize` is None.
    """
    with Image.open(path) as image:
        image.load()
        if channels == 0:
            if image.mode not in ("1", "L", "P"):
                raise ValueError(f"a mask needs one channel of class numbers, this is {image.mode}")
            image = image if image.mode != "1" else Image.fromarray(np.asarray(image).astype(np.uint8))
        else:
            image = _with_channels(image, channels)
        if image.size != size[::-1]:
            if resize is None:
                raise ValueError(f"its size is {image.height}x{image.width}, needed is {size[0]}x{size[1]}")
            image = _resized(image, size, resize, Image.Resampling.NEAREST if channels == 0 else Image.Resampling.BILINEAR)
        array = np.asarray(image)
    return array if channels != 1 else array[..., None]


def _with_channels(image: Image.Image, channels: int) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits and more: keep the upper eight, where a plain conversion would clip
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "P":
        image = image.convert("RGBA")  # a palette with transparency has no direct way to RGB
    wanted = "L" if channels == 1 else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _resized(image: Image.Image, size: tuple[int, int], how: str, resample: Image.Resampling) -> Image.Image:
    height, width = size
    if how == "stretch":
        return image.resize((width, height), resample)
    scale = max(height / image.height, width / image.width)
    across, down = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    left, top = (across - width) // 2, (down - height) // 2
    return image.resize((across, down), resample).crop((left, top, left + width, top + height))


def channels_first(images: Tensor) -> Tensor:
    """(n, h, w, c) as (n, c, h, w)."""
    # A plain .contiguous() would keep odd strides where there is one channel, and models that call .view fail on those.
    return images.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)


def header(path: Path) -> tuple[str, tuple[int, int]] | None:
    """(mode, (height, width)) without decoding, or None where the file is no image."""
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")
            return image.mode, (image.height, image.width)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None


def to_tensor(value: Any) -> Tensor:
    """A tensor, array, PIL image or number as a tensor; images as uint8 (channels, height, width)."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Image.Image):
        image = value if value.mode in ("L", "RGB") else value.convert("RGB")
        array = np.array(image)
        return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
    return torch.as_tensor(np.asarray(value))


def name_some(broken: Sequence[str]) -> str:
    """The first five, and how many more."""
    more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
    return "; ".join(broken[:5]) + more
