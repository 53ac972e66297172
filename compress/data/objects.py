"""What a program holds in memory, as data.

    x, (x, y)             tensors or arrays; x may be a tuple of several inputs, y may be None
    Dataset               its items, read when they are needed where all of them do not fit into memory
    DataLoader, iterable  its batches, inputs or (inputs, targets), read once and kept
    callable              called without arguments; any of these, as a generator of batches
    dict                  train, and val and test where there are such: any of these; or arrays x_train, y_train, ...

Real numbers are what the model takes and are used as they come; whole numbers of 8 bits are images, normalized as those of a
file are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from compress.data.arrays import PARTS, open_arrays
from compress.data.batches import Rows, by_name, collected, first_line, rows, unfit
from compress.data.datasets import from_datasets
from compress.data.open_data import divided
from compress.data.settings import Settings, make
from compress.data.sources import Part, Source
from compress.data.splits import Data
from compress.data.stores import Stored
from compress.errors import BadInput

WHERE = "data"
"""How messages call it: the name of the argument."""
NEEDED = (
    "needed is a DataLoader, a Dataset, a pair (x, y) of tensors or arrays, a function that gives batches, a dict of train and "
    "test with these, or a path"
)
_ITEMS = 64  # of a data set that is gone through once, at a time


@dataclass(frozen=True)
class _Lazy:
    """A data set whose items are read when they are needed."""

    items: Any


def open_objects(given: object, *, seed: int = 0, shape: tuple[int, ...] | None = None, settings: Settings | None = None) -> Data:
    """Data from what a program has in memory.

    Args:
        given: see above; a `Data` is used as it is.
        seed: of the splits, and of the order in which a loader that shuffles gives its batches.
        shape: (channels, height, width) that the model takes, where it is known.
        settings: what a data.toml would say.

    Raises:
        BadInput: nothing of these, dictionaries, batches of several shapes, a data set without length, or code of the user's
            that raises.
        EmptyData: no sample.
    """
    if isinstance(given, Data):
        return given
    settings = settings or make(WHERE)
    if isinstance(given, Mapping) and any(str(key).split("_")[0] == "x" for key in given):
        source = open_arrays(cast("Mapping[str, Any]", given), settings, shape, WHERE, as_given=True)
        return divided(source, settings, seed, WHERE)
    # A generator of our own: the caller draws the same numbers afterwards as without us.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = {part: _opened(value, what, settings) for part, (value, what) in _parts(given).items()}
        if all(isinstance(part, _Lazy) for part in parts.values()):
            made = {name: cast(_Lazy, part).items for name, part in parts.items()}
            return divided(from_datasets(made, settings, shape, WHERE, None), settings, seed, WHERE)
        read = {
            name: part if isinstance(part, Rows) else _gone_through(part.items, by_name(part.items), settings)
            for name, part in parts.items()
        }
    return divided(_of_rows(read, settings, shape), settings, seed, WHERE)


def fingerprint(data: Data) -> str:
    """Twelve digits that other samples would not have; empty where the samples are read only as they are needed."""
    found = hashlib.sha256()
    for split in (data.train, data.held_out, data.test):
        stores = (*split.inputs, *(() if split.targets is None else (split.targets,)))
        for store in stores:
            if not isinstance(store, Stored):
                return ""
            found.update(f"{store.values.dtype}{tuple(store.values.shape)}".encode())
            found.update(store.values.contiguous().view(-1).view(torch.uint8).numpy().data)
        found.update(split.index.numpy().data)
    return found.hexdigest()[:12]


def _parts(given: object) -> dict[str, tuple[Any, str]]:
    """Part -> what is given for it, and how messages call that."""
    if not isinstance(given, Mapping):
        return {"train": (given, f"The data ({by_name(given)})")}
    named = {str(key): value for key, value in cast("Mapping[object, Any]", given).items()}
    if odd := [key for key in named if key not in PARTS]:
        raise BadInput(
            f"The data is a dict with the key '{odd[0]}'; known are {', '.join(PARTS)}, or arrays x_train, y_train, x_test, "
            "y_test. Name its parts so."
        )
    if "train" not in named:
        raise BadInput("The data is a dict without 'train'; needed are training samples. Add them.")
    return {PARTS[key]: (value, f"The data ('{key}', {by_name(value)})") for key, value in named.items()}


def _opened(value: Any, what: str, settings: Settings, called: bool = False) -> Rows | _Lazy:
    if isinstance(value, Tensor | np.ndarray) or _pair(value):
        return rows(value, what)
    if isinstance(value, DataLoader):
        return collected(cast("DataLoader[Any]", value), what, settings.memory_gb * 1e9)
    if isinstance(value, IterableDataset):
        return _gone_through(cast("Dataset[Any]", value), what, settings)
    if isinstance(value, Dataset) and not hasattr(value, "__len__"):
        raise BadInput(
            f"{what} has no length; needed is how many items it has. Give it a __len__, make it an IterableDataset, or give a "
            "DataLoader of it."
        )
    if hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, str | bytes | Mapping | tuple):
        _refuse_items(value, what)
        return _Lazy(value)
    if callable(value) and not isinstance(value, type | torch.nn.Module) and not called:
        return _opened(_called(value, what), what, settings, called=True)
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping | tuple):
        return collected(cast("Iterable[Any]", value), what, settings.memory_gb * 1e9)
    raise BadInput(f"{what} cannot be used; {NEEDED}.")


def _pair(value: object) -> bool:
    """(x, y), as a tuple or a list: both are arrays, x may be a tuple of them and y None."""
    if not isinstance(value, tuple | list) or len(cast("list[Any]", value)) != 2:
        return False
    first, second = cast("tuple[Any, Any]", value)
    several = isinstance(first, tuple | list) and bool(first) and all(isinstance(x, Tensor | np.ndarray) for x in first)
    return (isinstance(first, Tensor | np.ndarray) or several) and (second is None or isinstance(second, Tensor | np.ndarray))


def _called(function: Any, what: str) -> Any:
    try:
        return function()
    except Exception as error:  # user code may raise anything
        raise BadInput(
            f"{what} raises when it is called ({first_line(error)}). It is called without arguments, and gives batches."
        ) from error


def _refuse_items(items: Any, what: str) -> None:
    """Refuse a data set by its first item, before all of them are read."""
    if not len(items):
        return  # said with the name of the part
    try:
        item = items[0]
    except Exception as error:  # user code may raise anything
        raise BadInput(f"{what} raises when its first item is read ({first_line(error)}). Correct it.") from error
    if why := unfit(item, "items"):
        raise BadInput(f"{what} {why}")


def _gone_through(dataset: Any, what: str, settings: Settings) -> Rows:
    return collected(DataLoader(dataset, batch_size=_ITEMS), what, settings.memory_gb * 1e9)


def _of_rows(read: Mapping[str, Rows], settings: Settings, shape: tuple[int, ...] | None) -> Source:
    """One source of what was read; the first input and the targets are arrays, further inputs stand beside them."""
    arrays: dict[str, Any] = {f"x_{name}": one.inputs[0] for name, one in read.items()}
    arrays |= {f"y_{name}": one.target for name, one in read.items() if one.target is not None}
    if len({len(one.inputs) for one in read.values()}) > 1:
        raise BadInput("The parts of the data have different numbers of inputs; needed is the same number in each.")
    source = open_arrays(arrays, settings, shape, WHERE, as_given=True)
    further = {name: tuple(Stored(x) for x in one.inputs[1:]) for name, one in read.items()}
    parts = {name: Part((*part.inputs, *further[name]), part.targets) for name, part in source.parts.items()}
    notes = tuple(note for one in read.values() for note in one.notes)
    return replace(source, parts=parts, notes=(*notes, *source.notes))
