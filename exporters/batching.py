"""Samples for a file that takes one batch size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from exporters.capture import Subject


def of(subject: Subject, batch: int) -> tuple[Tensor, ...]:
    """Example inputs of exactly that many samples."""
    return tuple(x[torch.arange(batch) % len(x)] for x in subject.batch)


def of_size(batches: Iterable[Sequence[Tensor]], size: int) -> Iterable[tuple[Tensor, ...]]:
    """The same samples, `size` at a time; the last of a batch are repeated where they are too few."""
    for batch in batches:
        for start in range(0, len(batch[0]), size):
            part = tuple(x[start : start + size] for x in batch)
            # Repeated and not cut off: every sample is compared at least once.
            yield tuple(x[torch.arange(size).clamp_max(len(x) - 1)] for x in part)
