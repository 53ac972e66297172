"""Batches of somebody's loader, read once into tensors; what is no batch of one shape is refused in a sentence."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from compress.errors import BadInput, EmptyData

MOST = 20_000
"""Samples that are read of what does not say how long it is, and may never end."""


@dataclass(frozen=True)
class Rows:
    """Samples in memory: inputs (n, ...) each, and targets (n, ...) or None."""

    inputs: tuple[Tensor, ...]
    target: Tensor | None
    notes: tuple[str, ...] = ()


Batch = tuple[tuple[Tensor, ...], Tensor | None]


def rows(value: Any, what: str) -> Rows:
    """x, or (x, y), as they are given.

    Raises:
        BadInput: their lengths differ, or x has no axis of samples.
    """
    return Rows(*_batch(value, what))


def collected(batches: Iterable[Any], what: str, room: float) -> Rows:
    """Every batch of a loader, one behind the other.

    Args:
        batches: of inputs, or of (inputs, targets).
        what: the beginning of every refusal.
        room: bytes that are kept; what comes after them is left out, and a note says so.

    Raises:
        BadInput: it raises, or gives anything else than batches of one shape.
        EmptyData: it gives none.
    """
    read: list[Batch] = []
    samples, size, notes = 0, 0, ()
    length = _length(batches)
    most = MOST if length is None else None
    try:
        # No more than it says, since a sampler may go on for ever.
        for given in itertools.islice(batches, length):
            batch = _batch(given, what)
            _refuse_another_shape(read[0] if read else batch, batch, what)
            read.append(batch)
            samples, size = samples + len(batch[0][0]), size + sum(x.nbytes for x in _tensors(batch))
            if size > room or (most is not None and samples >= most):
                notes = (_cut_off(samples, size > room, room, what),)
                break
    except BadInput:
        raise
    except Exception as error:  # user code may raise anything, and a worker anything of its own
        raise BadInput(f"{what} raises while its batches are read ({first_line(error)}). Correct it.") from error
    if not samples:
        raise EmptyData(f"{what} gives no sample; needed is at least one batch. Give more (drop_last leaves small ones out).")
    inputs = tuple(torch.cat(x) for x in zip(*(batch[0] for batch in read), strict=True))
    targets = [batch[1] for batch in read if batch[1] is not None]
    found = Rows(inputs, torch.cat(targets) if targets else None, notes)
    # A loader without an end begins again: the same sample must not be in two parts of the data.
    return _once_each(found, what) if most is not None and notes else found


def _once_each(found: Rows, what: str) -> Rows:
    """Every sample once, where the first one comes again."""
    tensors = _tensors((found.inputs, found.target))
    first: dict[bytes, int] = {}
    for number in range(len(found.inputs[0])):
        of_all = hashlib.blake2b(digest_size=16)
        for one in tensors:
            of_all.update(one[number].contiguous().reshape(-1).view(torch.uint8).numpy().data)
        first.setdefault(of_all.digest(), number)
    if len(first) == len(found.inputs[0]):
        return found
    kept = torch.tensor(sorted(first.values()))
    said = f"{what} does not say where it ends, and repeats itself: its {len(kept):,} different samples are used, each once."
    return Rows(tuple(x[kept] for x in found.inputs), None if found.target is None else found.target[kept], (said,))


def unfit(given: Any, kind: str) -> str | None:
    """Why a batch or an item is not used, as the end of a sentence about its source; None where it is.

    Args:
        given: what a loader or a data set gave.
        kind: "batches" or "items".
    """
    if isinstance(given, Mapping):
        names = [str(key) for key in cast("Mapping[object, Any]", given)]
        pair = f"b[{names[0]!r}], b[{names[-1]!r}]" if names else "x, y"
        return (
            f"gives {kind} that are dictionaries ({', '.join(names[:6])}); needed are inputs, or (inputs, targets). Give such "
            f"pairs, as in data=lambda: (({pair}) for b in loader)."
        )
    if isinstance(given, tuple | list) and not 1 <= len(cast("list[Any]", given)) <= 2:
        return (
            f"gives {kind} of {len(cast('list[Any]', given))} parts; needed are inputs, or (inputs, targets). Put several inputs "
            "into a tuple: ((a, b), targets)."
        )
    return None


def first_line(error: BaseException) -> str:
    """What went wrong, without a traceback: that of a worker ends with the error itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if "Original Traceback" in str(error):
        return lines[-1][:160]
    return f"{type(error).__name__}: {lines[0][:160]}"


def by_name(value: object) -> str:
    """What somebody gave, by its kind alone: data sets print all that they hold."""
    if isinstance(value, DataLoader):
        return f"a DataLoader of {type(cast('DataLoader[Any]', value).dataset).__name__}"
    if isinstance(value, tuple) and len(pair := cast("tuple[Any, ...]", value)) == 2:
        return f"a pair of {type(pair[0]).__name__} and {type(pair[1]).__name__}"
    return f"a {type(value).__name__}"


def _length(batches: object) -> int | None:
    try:
        return len(cast("list[Any]", batches))
    except Exception:  # torch raises where an IterableDataset has no length
        return None


def _cut_off(samples: int, full: bool, room: float, what: str) -> str:
    if full:
        return (
            f"{what}: the first {samples:,} samples are used, as many as fit into {room / 1e9:g} GB. A Dataset is read as it is "
            "needed, whatever its size."
        )
    return f"{what} does not say where it ends: its first {samples:,} samples are used."


def _batch(given: Any, what: str) -> Batch:
    if why := unfit(given, "batches"):
        raise BadInput(f"{what} {why}")
    pair = isinstance(given, tuple | list)
    first, target = (given[0], given[1] if len(given) == 2 else None) if pair else (given, None)
    several = isinstance(first, tuple | list)
    inputs = tuple(_tensor(x, "inputs", what) for x in (first if several else (first,)))
    if not inputs or any(x.ndim == 0 for x in inputs):
        raise BadInput(f"{what} gives inputs without an axis of samples; needed are batches, samples along the first axis.")
    found = None if target is None else _tensor(target, "targets", what)
    lengths = [len(x) if x.ndim else 0 for x in (*inputs, *(() if found is None else (found,)))]
    if len(set(lengths)) > 1:
        raise BadInput(f"{what} has {lengths[0]} inputs and {lengths[-1]} targets; needed is one for each. Give as many of both.")
    return inputs, found


def _tensor(value: Any, which: str, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray) and value.dtype.kind in "buif":
        # Whole numbers of 8 bits stay what they are; torch has few operations for unsigned ones beyond them.
        plain = value.astype(np.int64) if value.dtype.kind in "ui" and value.dtype.itemsize > 1 else value
        return torch.from_numpy(np.ascontiguousarray(plain))
    raise BadInput(f"{what} gives {which} that are {by_name(value)}; needed are tensors or arrays of numbers.")


def _tensors(batch: Batch) -> tuple[Tensor, ...]:
    return (*batch[0], *(() if batch[1] is None else (batch[1],)))


def _refuse_another_shape(first: Batch, batch: Batch, what: str) -> None:
    shapes = [[tuple(x.shape[1:]) for x in _tensors(one)] for one in (first, batch)]
    if shapes[0] != shapes[1]:
        one, other = (" and ".join("x".join(map(str, shape)) or "numbers" for shape in found) for found in shapes)
        raise BadInput(
            f"{what} gives samples of different shapes ({one}, then {other}); needed is one shape. Resize or pad them in the "
            "Dataset."
        )
