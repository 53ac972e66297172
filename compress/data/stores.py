"""Where samples live: in one tensor, in files of pictures, or in somebody's data set.

A store has a length and `read(index)`; everything above it (splits, batches, augmentation) is the same for all three.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from compress.data.feeding import PIECE, pieces
from compress.data.images import pixels, with_channels
from compress.errors import BadInput

_AT_ONCE = 1024  # samples that are read into memory in one go
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


class Encoded(Protocol):
    """Pictures as they lie in files, by number."""

    def __len__(self) -> int: ...

    def name(self, number: int) -> str:
        """What messages call it."""
        ...

    def file(self, number: int) -> str | BinaryIO:
        """What Pillow opens."""
        ...


@dataclass(frozen=True)
class Files:
    """A file for each picture."""

    paths: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, number: int) -> str:
        """Its path."""
        return self.paths[number]

    def file(self, number: int) -> str:
        """Its path."""
        return self.paths[number]


@dataclass(frozen=True)
class Pictures:
    """Pictures that are decoded when they are read.

    Attributes:
        size: (height, width) that every sample gets.
        channels: 1 or 3; 0 for a mask of class numbers, read as it is, (height, width).
        resize: None (another size is an error), "crop" (cover, then cut the center) or "stretch".
        upright: turned as EXIF says.
    """

    encoded: Encoded
    size: tuple[int, int]
    channels: int
    resize: str | None = None
    upright: bool = False
    broken: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.encoded)

    def read(self, index: Tensor) -> Tensor:
        numbers = index.tolist()
        shape = self.size if self.channels == 0 else (*self.size, self.channels)
        out = np.zeros((len(numbers), *shape), np.uint8)
        for row, number in enumerate(numbers):
            try:
                out[row] = pixels(self.encoded.file(number), self.size, self.channels, self.resize, self.upright)
            except Exception as error:  # Pillow raises a dozen kinds over damaged bytes
                self.broken[number] = f"{self.encoded.name(number)} ({type(error).__name__}: {error})"
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
        return _joined(torch.stack, [self._value(i) for i in index.tolist()])

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


def together(
    stores: Sequence[Store], chunks: Sequence[Tensor], workers: int, seed: int = 0, pinned: bool = False
) -> Iterator[list[Tensor]]:
    """Samples of several stores, chunk by chunk; what turns out to be unreadable stands in their `broken`.

    Args:
        stores: sample i is the same one in all of them.
        chunks: numbers of samples.
        workers: processes that read, as `feeding.pieces` has them.
        seed: of what a data set draws there.
        pinned: for a GPU that copies by itself.
    """
    if all(isinstance(store, Stored) for store in stores):
        yield from ([store.read(chunk) for store in stores] for chunk in chunks)
        return

    def read(index: Tensor) -> tuple[list[Tensor], list[dict[int, str]]]:
        values = [store.read(index) for store in stores]
        return values, [{i: store.broken[i] for i in index.tolist() if i in store.broken} for store in stores]

    divided = [chunk.split(PIECE) for chunk in chunks]
    found = pieces(read, [piece for pieces_of_one in divided for piece in pieces_of_one], workers, seed, pinned)
    for pieces_of_one in divided:
        parts = list[list[Tensor]]()
        for _ in pieces_of_one:
            values, broken = next(found)
            parts.append(values)
            for store, what in zip(stores, broken, strict=True):
                store.broken.update(what)
        yield parts[0] if len(parts) == 1 else [_joined(torch.cat, list(of_one)) for of_one in zip(*parts, strict=True)]


def in_memory(stores: Sequence[Store], count: int, workers: int) -> list[Tensor]:
    """All samples of each store, read into their places: parts that wait to be joined would be there twice."""
    found: list[Tensor] = []
    numbers = torch.arange(count).split(_AT_ONCE)
    for chunk, values in zip(numbers, together(stores, numbers, workers), strict=True):
        found = found or [one.new_empty(count, *one.shape[1:]) for one in values]
        for place, one in enumerate(values):
            # Beside a sample that is there, for the refusal of another shape, and for a type that holds both.
            fitting = _joined(torch.cat, [found[place][:1], one])[1:]
            found[place] = found[place].to(fitting.dtype)
            found[place][chunk] = fitting
    return found


def _joined(how: Callable[[list[Tensor]], Tensor], parts: list[Tensor]) -> Tensor:
    try:
        return how(parts)
    except RuntimeError as error:
        raise BadInput(
            f"The data set's items cannot be stacked ({error}). Needed are items of one shape: resize them there."
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
