"""How many threads of this process take part in a piece of work.

Many small matrices are faster on one: a thread that waits for another one's part of a product of some hundred columns spins, and
where somebody else has its core, the other one waits for a whole slice of time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

NARROW = 1000
"""Columns of a matrix up to which a second thread gains nothing."""


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many for the block; 0 for as many as there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def for_columns(columns: int) -> int:
    """Threads, as `threads` takes them, for matrices of so many columns."""
    return 1 if columns <= NARROW else 0
