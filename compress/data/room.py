"""Values of a model that are still to be read: in memory while there is room, else in files that vanish with the process.

    Room      how many bytes may be held at once, where the rest goes, and what was chosen
    Held      what one node of a model gave, one value for each part of the images, in order

A file has no name any more as soon as it is open: whatever ends the process, its bytes are given back. It is mapped for each
reading and let go afterwards, so that what was read does not stay in memory.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from compress.errors import NotEnoughMemory, NotWritten
from compress.measure.asked import parse_memory
from compress.user import memory

_SMALL = 4096  # bytes of a tensor that is never worth a file
_OF_THE_DISK = 0.25  # of what is free there: two models are kept side by side, and others write, too
_ALIGNED = 64  # bytes at whose multiples tensors begin in a file


@dataclass
class Room:
    """Bytes for all that a stage holds at once.

    Attributes:
        limit: bytes; of the device's memory where the device is a GPU.
        folder: made for files when the first is needed; None for the system's temporary one.
        device: where the values are wanted.
        host: bytes of the host's memory for what does not fit on a GPU.
        said: how the limit came about, as in "4.0 GB (--memory)".
        away: bytes that went to files so far.
    """

    limit: float = float("inf")
    folder: Path | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    host: float = 0.0
    said: str = ""
    away: int = 0

    def __post_init__(self) -> None:
        # The other half is for what a layer's fit and one part of the images take for a moment.
        self._left = {True: self.limit / 2, False: self.host}

    def images(self, each: float, share: float = 1 / 8) -> int:
        """How many images may go through a model at once, at so many bytes each, within a share of the room."""
        return int(max(1, min(self.limit * share / max(each, 1), 1 << 30)))

    def check(self, needed: float, what: str) -> None:
        """Refuse a limit in which the largest step does not fit.

        Raises:
            NotEnoughMemory: says what it needs.
        """
        if needed > self.limit:
            raise NotEnoughMemory(
                f"{what} alone needs {told(needed)} of memory, more than {self.said or told(self.limit)}. "
                f"Give at least --memory {_at_least(needed)}."
            )

    def take(self, size: int, near: bool) -> bool:
        """Whether so many bytes fit: on the device (near), or in the host's memory beside it."""
        if self._left[near] < size:
            return False
        self._left[near] -= size
        return True

    def give_back(self, size: int, near: bool) -> None:
        self._left[near] += size

    def keeps(self, size: float) -> bool:
        """Whether so many bytes more, of what can be computed again, are kept: in memory, or where files have plenty of room."""
        away = size - sum(self._left.values())
        return away <= 0 or away <= _OF_THE_DISK * self._free_for_files()

    def _free_for_files(self) -> int:
        place = self.folder or Path(tempfile.gettempdir())
        return shutil.disk_usage(next(one for one in (place, *place.absolute().parents) if one.exists())).free

    def file(self) -> IO[bytes]:
        """A new file without a name."""
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 (open for as long as it is read)
        if self.folder is not None:
            with suppress(OSError):  # somebody else's files are in it
                self.folder.rmdir()
        return made


@dataclass(frozen=True)
class _Mapped:
    """A tensor's place in a file."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Held:
    """A value for each part of the images. Anything that is no tensor, or a small one, stays in memory."""

    def __init__(self, room: Room):
        self.room = room
        self._parts: list[tuple[list[Any], Any]] = []
        self._file: IO[bytes] | None = None
        self._taken: dict[bool, int] = {True: 0, False: 0}

    def __len__(self) -> int:
        return len(self._parts)

    @property
    def samples(self) -> int:
        """Number of images, where the values are tensors."""
        return sum(leaves[0].shape[0] for leaves, _ in self._parts)

    def append(self, value: Any) -> None:
        """The next part's value.

        Raises:
            NotWritten: it does not fit into memory, and the files have no room either.
        """
        leaves, shape = pytree.tree_flatten(value)
        self._parts.append(([self._put(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves], shape))

    def __getitem__(self, number: int) -> Any:
        leaves, shape = self._parts[number]
        return pytree.tree_unflatten([self._got(leaf) for leaf in leaves], shape)

    def rows(self, index: Tensor) -> Tensor:
        """Some images of a value that is one tensor, in the order of `index`, which counts through all parts."""
        ends = torch.tensor([leaves[0].shape[0] for leaves, _ in self._parts]).cumsum(0)
        where = torch.searchsorted(ends, index, right=True)
        found: Tensor | None = None
        for number in where.unique().tolist():
            here = torch.nonzero(where == number)[:, 0]
            start = int(ends[number - 1]) if number else 0
            # Of a mapped part only the rows that are asked for are read.
            rows = self._plain(self._parts[number][0][0])[index[here] - start].to(self.room.device)
            found = rows.new_empty(len(index), *rows.shape[1:]) if found is None else found
            found[here] = rows
        assert found is not None, "some image is asked for"
        return found

    def drop(self) -> None:
        """Nobody reads it any more."""
        self._parts = []
        for near, size in self._taken.items():
            self.room.give_back(size, near)
        self._taken = {True: 0, False: 0}
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        self.drop()

    def _put(self, value: Tensor) -> Any:
        size = value.nbytes
        if size <= _SMALL:
            return value
        for near in (True, False):
            if self.room.take(size, near):
                self._taken[near] += size
                return value if near else value.cpu()
        return self._written(value.detach().cpu().contiguous())

    def _written(self, value: Tensor) -> _Mapped:
        try:
            self._file = self._file or self.room.file()
            end = self._file.seek(0, os.SEEK_END)
            offset = -(-end // _ALIGNED) * _ALIGNED
            self._file.seek(offset)
            self._file.write(value.reshape(-1).view(torch.uint8).numpy().data)
            self._file.flush()
        except OSError as error:
            place = self.room.folder or tempfile.gettempdir()
            raise NotWritten(
                f"{told(self.room.away)} of activations that do not fit into memory are in files, and {place} takes no more "
                f"({error.strerror}). Make room there, or give more --memory or a smaller --calibration."
            ) from error
        self.room.away += value.nbytes
        return _Mapped(offset, tuple(value.shape), value.dtype)

    def _got(self, leaf: Any) -> Any:
        return self._plain(leaf).to(self.room.device) if isinstance(leaf, Tensor | _Mapped) else leaf

    def _plain(self, leaf: Tensor | _Mapped) -> Tensor:
        if isinstance(leaf, Tensor):
            return leaf
        size = leaf.dtype.itemsize * int(np.prod(leaf.shape))
        assert self._file is not None, "what is mapped was written"
        # Private pages: a layer that writes in place changes its own copy.
        mapped = np.memmap(self._file, np.uint8, "c", leaf.offset, (size,))
        return torch.from_numpy(mapped).view(leaf.dtype).view(leaf.shape)


def room(asked: str | None, device: torch.device, folder: Path | None, local: int = 1) -> Room:
    """The room that a process of a run has: what was asked for, by default its part of half of what is free.

    Args:
        asked: as in `--memory 4GB`.
        device: where models run; on a GPU the room is its memory, and half of what the host has free comes next.
        folder: for files.
        local: processes of this machine that share what is free.
    """
    host = memory.free() / 2 / local
    shared = "half of what is free" if local == 1 else f"its part of half of what is free, of {local} processes"
    if device.type != "cuda":
        given = parse_memory(asked) if asked else host
        return Room(given, folder, device, said=f"{told(given)} ({'--memory' if asked else shared})")
    given = parse_memory(asked) if asked else torch.cuda.mem_get_info(device)[0] / 2
    return Room(given, folder, device, host, f"{told(given)} ({'--memory' if asked else 'half of what the GPU has free'})")


def _at_least(size: float) -> str:
    """As `--memory` takes it, rounded up."""
    return f"{math.ceil(size / 1e8) / 10:.1f}GB" if size > 1e8 else f"{math.ceil(size / 1e6)}MB"


def told(size: float) -> str:
    """Bytes as people read them."""
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
