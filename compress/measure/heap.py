"""Freed memory stays with the process while it works.

glibc asks the system for every block above 32 MB anew and gives it back when it is freed, and the system fills it with zeros page
by page as it is touched first. Activations of a batch are such blocks (`benchmarks/heap.py` tells what that takes).

Where the C library is another one, or somebody has set its environment variables, nothing is changed. ONNX Runtime keeps its
memory itself, in pieces that would only lie in the way here.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

# From malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1}
# What glibc's own thresholds grow to in a process that frees large blocks; once set, they no longer grow.
_USUAL = {_MMAP_MAX: 65536, _TRIM_THRESHOLD: 64 << 20, _MMAP_THRESHOLD: 32 << 20}

_blocks: list[bool] = []
"""Of the blocks of code that are entered, whether memory is kept in them."""


@contextmanager
def kept(keep: bool = True) -> Iterator[None]:
    """In this block freed memory is kept, which costs some: not to be done (`keep`) where somebody has bounded it."""
    yield from _within(keep)


@contextmanager
def as_usual() -> Iterator[None]:
    """In this block, also inside of `kept`, it is as in any other process: what is timed is what others will see."""
    yield from _within(False)


def _within(keep: bool) -> Iterator[None]:
    before = bool(_blocks) and _blocks[-1]
    _blocks.append(keep)
    _change(before, keep)
    try:
        yield
    finally:
        _blocks.pop()
        _change(keep, before)


def _change(before: bool, keep: bool) -> None:
    if keep != before and (library := _glibc()):
        settings: Mapping[int, int] = _KEEPING if keep else _USUAL
        for what, value in settings.items():
            library.mallopt(what, value)
        if not keep:
            library.malloc_trim(0)


def _glibc() -> Any:
    """The C library where it is glibc and nobody has told it what to do, else None."""
    if not sys.platform.startswith("linux") or "GLIBC_TUNABLES" in os.environ or any(k.startswith("MALLOC_") for k in os.environ):
        return None
    library = ctypes.CDLL(None)
    # musl has neither.
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
