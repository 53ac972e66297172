"""What targets of zeros and ones stand for.

    (n,), (n, 1)              of two classes: class numbers, whatever type they are stored in
    (n, k), one 1 per row     class numbers, one-hot
    (n, k)                    k labels, any number of which holds at once: the task multilabel
    (n, h, w), (n, 1, h, w)   masks of two classes

Squared error would take them for values, and an output of 3 for a label of 1 for a bad one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.data.stores import Store
from compress.errors import BadInput
from compress.user.wording import many

OTHERWISE = "task = ... in a data.toml says otherwise"


@dataclass(frozen=True)
class Meaning:
    """What targets stand for.

    Attributes:
        convert: a batch of targets, in the form of its task.
        note: one sentence on what was inferred.
    """

    task: str
    convert: Callable[[Tensor], Tensor]
    note: str


@dataclass(frozen=True)
class Converted:
    """Samples of another store in the form of their task."""

    store: Store
    convert: Callable[[Tensor], Tensor]

    @property
    def broken(self) -> dict[int, str]:
        """Those of the store."""
        return self.store.broken

    def __len__(self) -> int:
        return len(self.store)

    def read(self, index: Tensor) -> Tensor:
        return self.convert(self.store.read(index))


def meaning(targets: Sequence[Tensor], where: str) -> Meaning | None:
    """What the targets of all parts stand for, where they are zeros and ones; None for any others.

    Raises:
        BadInput: they may be several things.
    """
    first = targets[0]
    columns = first.shape[1] if first.ndim > 1 else 1
    if first.ndim == 2 and columns > 1 and all(_signs(y) for y in targets) and any(bool((y == -1).any()) for y in targets):
        raise BadInput(
            f"The targets of {where} are -1, 0 and 1 in {columns} columns, which may be labels or values. Give labels as zeros "
            'and ones, or write task = "regression" into a data.toml.'
        )
    if not all(zeros_and_ones(y) for y in targets):
        return None
    if first.ndim == 2 and columns > 1:
        if all(bool((y.sum(1) == 1).all()) for y in targets):
            return Meaning(
                "classification", _positions, f"The labels are one-hot and were turned into class numbers; {OTHERWISE}."
            )
        said = f"The targets are zeros and ones in {columns} columns, taken as labels of which any number holds (multilabel)"
        return Meaning("multilabel", lambda y: y.to(torch.uint8), f"{said}; {OTHERWISE}.")
    two = f"The targets are zeros and ones, taken as numbers of two classes; {OTHERWISE}."
    if first.ndim <= 2:
        return Meaning("classification", lambda y: y.reshape(len(y)).long(), two)
    if first.ndim == 4 and 1 not in (columns, first.shape[-1]):
        raise BadInput(
            f"The targets of {where} are zeros and ones of shape {tuple(first.shape)}, which may be masks or images. Give masks "
            'as class numbers n,h,w, or write task = "image" into a data.toml.'
        )
    axis = 1 if columns == 1 else -1
    return Meaning("segmentation", lambda y: (y.squeeze(axis) if y.ndim == 4 else y).to(torch.uint8), two)


def zeros_and_ones(targets: Tensor) -> bool:
    """Nothing but zeros and ones, which are no values then."""
    return bool(((targets == 0) | (targets == 1)).all())


def label_names(targets: Sequence[Tensor], names: Sequence[str] | None, where: str) -> tuple[tuple[str, ...], list[str]]:
    """Names of the labels 0, 1, ... and a note about those that never change.

    Raises:
        BadInput: another number of names, or labels that say nothing.
    """
    count = targets[0].shape[1]
    if len({y.shape[1] for y in targets}) > 1:
        raise BadInput(f"The parts of {where} have different numbers of labels. Needed are the same columns.")
    if names is not None and len(names) != count:
        raise BadInput(f"{where} has {many(count, 'label')}, but {many(len(names), 'name')} for them. Give one name for each.")
    found = tuple(names or map(str, range(count)))
    same = (targets[0] == targets[0][:1]).all(0)
    if bool(same.all()):
        raise BadInput(f"All training images of {where} have the same labels; there is nothing to learn. Give the full data.")
    fixed = [found[i] for i in same.nonzero()[:, 0].tolist()]
    return found, [f"Labels that are the same on all training images: {', '.join(fixed)}."] * bool(fixed)


def _signs(targets: Tensor) -> bool:
    return bool(((targets == 0) | (targets.abs() == 1)).all()) if targets.dtype != torch.bool else True


def _positions(targets: Tensor) -> Tensor:
    # Data that is read while running was looked at in part only.
    if not bool((targets.sum(1) == 1).all()):
        raise BadInput('Labels that looked one-hot hold more or fewer than one 1. Write task = "multilabel" into a data.toml.')
    return targets.to(torch.uint8).argmax(1)
