"""What every kind of source gives before it is split and normalized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compress.data.preparation import Preparation
from compress.data.stores import IGNORE, WHOLE, Store, Stored, in_memory
from compress.data.targets import label_names
from compress.errors import BadInput, EmptyData

MOST_CLASSES = 1_000_000
"""More than any vocabulary has. Beyond it a label is an identifier or a time, and names of all smaller numbers fill memory."""


@dataclass(frozen=True)
class Part:
    """Samples that the source keeps together: one sample has the same number in all stores."""

    inputs: tuple[Store, ...]
    targets: Store | None = None


@dataclass(frozen=True)
class Source:
    """A source that has been opened.

    Attributes:
        parts: "train" and, where the source has them, "val" and "test".
        shape: of one input, (channels, height, width).
        preset: name of the normalization that belongs to this data, where it is known.
        preparation: how a picture became an input.
        example: name of a training file, where the samples are files.
        workers: processes that read samples which are not in memory.
        ready: inputs are normalized already and are used as they come.
    """

    parts: dict[str, Part]
    shape: tuple[int, ...]
    task: str
    classes: tuple[str, ...] | None = None
    preset: str | None = None
    ready: bool = False
    notes: tuple[str, ...] = field(default=())
    example: str = ""
    preparation: Preparation | None = None
    workers: int = 0


def named(
    targets: Sequence[Tensor], task: str, names: Sequence[str] | None, where: str
) -> tuple[tuple[str, ...] | None, list[str]]:
    """Names of classes or labels, and notes; the training part comes first. Where there is nothing to name, what was given."""
    if targets and task in WHOLE:
        return number_classes(targets, task, names, where), []
    if targets and task == "multilabel":
        return label_names(targets, names, where)
    return None if names is None else tuple(names), []


def number_classes(targets: Sequence[Tensor], task: str, names: Sequence[str] | None, where: str) -> tuple[str, ...]:
    """Names of the classes 0, 1, ... that the labels use.

    Raises:
        BadInput: negative labels, fewer than two classes, or labels beyond the given names.
    """
    labels = torch.cat([t.reshape(-1).unique() for t in targets]).unique()
    if task == "segmentation":
        labels = labels[labels != IGNORE]
    if not len(labels):
        raise EmptyData(f"{where} has no label. Give labeled data, or leave the labels out.")
    lowest, highest = int(labels.min()), int(labels.max())
    if lowest < 0:
        raise BadInput(f"The labels of {where} go down to {lowest}; needed are class numbers from 0 upwards.")
    if names is None and highest >= MOST_CLASSES:
        raise BadInput(
            f"The labels of {where} reach {highest}, which is no number of a class; needed are numbers from 0 upwards without "
            f"large gaps. Number the classes anew, or say in a data.toml which task it is."
        )
    if len(labels) < 2:
        raise BadInput(f"The labels of {where} are all of one class ({lowest}); needed are at least two. Give the full data.")
    if names is None:
        return tuple(map(str, range(highest + 1)))
    if highest >= len(names):
        raise BadInput(f"The labels of {where} reach class {highest}, but there are names for {len(names)} only. Add the others.")
    return tuple(names)


def unreadable_out(part: Part, where: str, workers: int = 0) -> tuple[Part, list[str]]:
    """The part in memory, without the samples that could not be read; those are named.

    Raises:
        EmptyData: nothing could be read.
    """
    count = len(part.inputs[0])
    stores = (*part.inputs, *(() if part.targets is None else (part.targets,)))
    values = in_memory(stores, count, workers)
    broken = {number: text for store in stores for number, text in store.broken.items()}
    if count and len(broken) == count:
        raise EmptyData(f"None of the {count} images of {where} can be read. The first: {next(iter(broken.values()))}.")
    if broken:
        good = torch.tensor([number not in broken for number in range(count)])
        values = [v[good] for v in values]
    loaded = [Stored(v) for v in values]
    targets = None if part.targets is None else loaded.pop()
    return Part(tuple(loaded), targets), list(broken.values())
