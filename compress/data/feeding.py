"""Samples of slow stores, read by processes of their own while the model computes: torch's DataLoader around `read`.

    chunks of numbers -> pieces of at most PIECE -> workers, each a piece ahead -> chunks again, in order

A worker is a fork: it has the store as it is here, a data set of a notebook too, and starts in milliseconds. Where there is no
fork, or little to read, a thread reads ahead.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from compress.errors import BadInput
from exporters.standalone.machine import cores
from exporters.standalone.tied import PR_SET_PDEATHSIG

PIECE = 32  # samples that a worker reads at once: far above the cost of handing them over, small enough to balance
AHEAD = 2  # pieces for each worker that are read and wait
MOST_WORKERS = 8  # by default: beyond them a disk, or the model, is what is waited for

Piece = TypeVar("Piece")


@dataclass(frozen=True)
class _Raised:
    """What a worker's reading ended with, to be raised where it is waited for."""

    error: Exception


class _Pieces(Dataset[Any], Generic[Piece]):
    def __init__(self, read: Callable[[Tensor], Piece], pieces: Sequence[Tensor]) -> None:
        self._read, self._pieces = read, pieces

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, number: int) -> Piece | _Raised:
        try:
            return self._read(self._pieces[number])
        except Exception as error:
            return _Raised(error)


def default_workers() -> int:
    """A core each; none where there is one core, on which a process of its own could only take turns with the model."""
    return 0 if (there := cores()) == 1 else min(MOST_WORKERS, there)


def pieces(
    read: Callable[[Tensor], Piece], numbers: Sequence[Tensor], workers: int, seed: int = 0, pinned: bool = False
) -> Iterator[Piece]:
    """What `read` gives for each of `numbers`, in their order.

    Args:
        read: of tensors, or tuples and lists of them; in a worker it changes nothing here.
        numbers: of samples, a piece each.
        workers: processes; 0 for a thread that reads one piece ahead.
        seed: of what a data set draws in a worker.
        pinned: hand the tensors over in memory from which a GPU copies by itself.

    Raises:
        BadInput: a worker ended, killed by the system or by the library that decodes.
        Exception: what `read` raises.
    """
    if not workers or len(numbers) < 2:
        yield from _by_a_thread(read, numbers, 1)
    elif not sys.platform.startswith("linux"):  # no fork, or one that system libraries do not survive
        yield from _by_a_thread(read, numbers, workers)
    else:
        yield from _by_processes(read, numbers, min(workers, len(numbers)), seed, pinned)


def _by_a_thread(read: Callable[[Tensor], Piece], numbers: Sequence[Tensor], threads: int) -> Iterator[Piece]:
    with ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(read, one) for one in numbers[: AHEAD * threads]]
        for following in [*numbers[len(waiting) :], *[None] * len(waiting)]:
            found = waiting.pop(0).result()
            if following is not None:
                waiting.append(pool.submit(read, following))
            yield found


def _by_processes(
    read: Callable[[Tensor], Piece], numbers: Sequence[Tensor], workers: int, seed: int, pinned: bool
) -> Iterator[Piece]:
    with warnings.catch_warnings():
        # Python warns of forks beside threads, torch of more workers than cores: both are meant.
        warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*worker processes.*")
        found = iter(
            DataLoader(
                _Pieces(read, numbers),
                batch_size=None,
                num_workers=workers,
                prefetch_factor=AHEAD,
                multiprocessing_context=multiprocessing.get_context("fork"),
                worker_init_fn=partial(_begin, os.getpid()),
                pin_memory=pinned,
                # Of its own: what others draw here must not depend on how data is read.
                generator=torch.Generator().manual_seed(seed),
            )
        )
    while True:
        try:
            one = next(found)
        except StopIteration:
            return
        except RuntimeError as error:
            if "worker" not in str(error):
                raise
            raise BadInput(
                f"A process that reads the data ended by itself ({str(error).splitlines()[0][:160]}). If memory is short, give "
                "less, or write workers = 0 into a data.toml; otherwise a file may break the library that decodes it."
            ) from error
        if isinstance(one, _Raised):
            raise one.error
        yield cast("Piece", one)


def _begin(parent: int, _: int) -> None:
    """A worker ends with the process that waits for it, and leaves signals to that one."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # It may have ended before the kernel was asked.
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
