"""Where samples live: in one tensor, in image files, or in somebody's data set.

A store has a length and `read(index)`; everything above it (splits, batches, augmentation) is the same for all three.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from compress.data.images import pixels, with_channels
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
        upright: turned as EXIF says.
    """

    paths: tuple[Path, ...]
    size: tuple[int, int]
    channels: int
    resize: str | None = None
    upright: bool = False
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
                    out[row] = pixels(self.paths[numbers[row]], self.size, self.channels, self.resize, self.upright)
                except Exception as error:  # Pillow raises a dozen kinds over damaged bytes
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
        values = [self._value(i) for i in index.tolist()]
        try:
            return torch.stack(values)
        except RuntimeError as error:
            raise BadInput(
                f"The data set's items cannot be stacked ({error}). Needed are items of one shape: resize them there."
            ) from error

    def _value(self, number: int) -> Tensor:
        try:
            return to_tensor(self.pick(self.items[number]))
        except (BadInput, MemoryError):
            raise
        except Exception as error:  # user code may raise anything
            told = (str(error).strip() or "no message").splitlines()[0][:160]
            raise BadInput(
                f"The data set {type(self.items).__name__} raises at item {number} ({type(error).__name__}: {told}). Correct it."
            ) from error


def channels_first(images: Tensor) -> Tensor:
    """(n, h, w, c) as (n, c, h, w)."""
    # A plain .contiguous() would keep odd strides where there is one channel, and models that call .view fail on those.
    return images.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format)


def to_tensor(value: Any) -> Tensor:
    """A tensor, array, PIL image or number as a tensor; images as uint8 (channels, height, width)."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Image.Image):
        try:
            image = value if value.mode in ("L", "RGB") else with_channels(value, 3)
        except ValueError as error:
            raise BadInput(f"The data set gives an image that cannot be used: {error}.") from error
        array = np.array(image)
        return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1).copy())
    array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        raise BadInput(f"The data holds {str(value)[:40]!r}, which is no number. Give tensors, or arrays of numbers.")
    return torch.as_tensor(array)


def name_some(broken: Sequence[str]) -> str:
    """The first five, and how many more."""
    more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
    return "; ".join(broken[:5]) + more
