"""Splits and their batches: seeded order, augmentation on whole batches, normalization, in that order.

uint8 image / 255            (float images: as they are)
-> flip, shift               per sample, drawn by seed and epoch, only where asked for
-> (x - mean) / std          per channel
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from compress.data.preparation import Preparation
from compress.data.stores import IGNORE, WHOLE, Store, channels_first, name_some, together
from compress.data.targets import zeros_and_ones
from compress.errors import BadInput, EmptyData
from compress.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Batch:
    """Model inputs (n, c, h, w), normalized float32, and the target, or None where there are no labels.

    Targets: class numbers (n,), class numbers per pixel (n, h, w) or per token (n, t), labels of zeros and ones (n, k), values
    (n, k) or images (n, c, h, w).
    Tokens (n, t) are float32 as well, their numbers as they are.
    """

    inputs: tuple[Tensor, ...]
    target: Tensor | None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        target = None if self.target is None else self.target.to(device)
        return Batch(tuple(x.to(device) for x in self.inputs), target)


@dataclass(frozen=True)
class Augment:
    """Random changes of training images: mirror left-right, move by up to `shift` pixels in both directions (black border)."""

    flip: bool = False
    shift: int = 0


@dataclass(frozen=True)
class DataSpec:
    """What is known about the data.

    Attributes:
        shape: of one input, (channels, height, width).
        mean, std: per channel, on the scale 0-1 for 8-bit images, on the data's own scale otherwise.
        classes: names in the order of the class numbers, or of the labels; None where there are none.
        task: "classification", "multilabel" (any number of labels at once), "segmentation", "regression", "image" (image to
            image) or "text" (a token for each token).
        preparation: how a picture became an input; None where a user's own code made the data.
        inferred: whether mean and std were measured here, since nobody said what the model was trained with.
        stated: the settings of the data that say the normalization, "normalize" or "mean and std"; empty where none does.
    """

    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] | None = None
    augment: Augment = field(default_factory=Augment)
    task: str = "classification"
    labeled: bool = True
    source: str = ""
    preparation: Preparation | None = None
    inferred: bool = False
    stated: str = ""


@dataclass(frozen=True)
class Split:
    """Some of the samples of a source. `index[i]` is the number of sample i in its stores; `workers` processes read slow ones."""

    inputs: tuple[Store, ...]
    targets: Store | None
    index: Tensor
    spec: DataSpec
    max_unreadable: float = 0.05
    workers: int = 0

    def __len__(self) -> int:
        return len(self.index)

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Samples that could not be read so far, with the reason; batches leave them out."""
        stores = (*self.inputs, *(() if self.targets is None else (self.targets,)))
        return tuple(text for store in stores for text in store.broken.values())

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        augment: bool = False,
        limit: int | None = None,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
        only: range | None = None,
        ranks: Ranks = ALONE,
    ) -> Iterator[Batch]:
        """Batches of the split, the same ones for the same arguments.

        Args:
            batch_size: samples per batch; the last one may be smaller, unless `drop_last` and it is not the only one.
            shuffle: new order, drawn from seed and epoch.
            seed: of everything drawn.
            epoch: number of the pass; each has an order and changes of its own.
            augment: flips and shifts as `spec.augment` says, drawn from seed and epoch.
            limit: that many samples only, drawn from the seed (never the first ones: folders are sorted by class).
            drop_last: leave an incomplete last batch out.
            device: where batches end up; 8-bit images travel as such and are augmented and normalized there.
            only: numbers of the batches that are wanted, all by default; others are not read.
            ranks: processes among which the samples of every batch are dealt out.

        Raises:
            EmptyData: the split is empty.
            BadInput: more samples turn out to be unreadable than the stated share.
        """
        if not len(self):
            raise EmptyData(f"The data of {self.spec.source} has no sample left in this part. Give more images.")
        order = self._order(shuffle, seed, epoch, limit)
        chunks = list(order.split(batch_size))
        if drop_last and len(chunks) > 1 and len(chunks[-1]) < batch_size:
            chunks.pop()
        chunks = chunks if only is None else [chunks[number] for number in only]
        chunks = [own for chunk in chunks if len(own := ranks.part(chunk))]
        # One stream of random numbers for the changes, on the CPU: the same ones whatever the device.
        draws = torch.Generator().manual_seed(_mix(seed + ranks.number, epoch, 2))
        place = torch.device(device)
        for inputs, target in self._samples(chunks, _mix(seed, epoch, 3), place):
            yield self._finished(inputs, target, draws if augment else None, place)

    def count(self, batch_size: int, limit: int | None = None) -> int:
        """Number of batches of a pass."""
        samples = len(self) if limit is None else min(limit, len(self))
        return -(-samples // batch_size)

    def _order(self, shuffle: bool, seed: int, epoch: int, limit: int | None) -> Tensor:
        order = self.index
        if limit is not None and limit < len(order):
            chosen = torch.randperm(len(order), generator=torch.Generator().manual_seed(_mix(seed, 0, 0)))[:limit]
            order = order[chosen.sort().values]
        if shuffle:
            order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(_mix(seed, epoch, 1)))]
        return order

    def _samples(
        self, chunks: Sequence[Tensor], seed: int, device: torch.device
    ) -> Iterator[tuple[tuple[Tensor, ...], Tensor | None]]:
        """Raw samples chunk by chunk, without those that cannot be read."""
        stores = (*self.inputs, *(() if self.targets is None else (self.targets,)))
        total = len(self.inputs[0])
        for chunk, values in zip(chunks, together(stores, chunks, self.workers, seed, device.type == "cuda"), strict=True):
            broken = {number for store in stores for number in store.broken}
            if len(broken) > self.max_unreadable * total:
                raise BadInput(too_many(self.unreadable, total, self.max_unreadable))
            if broken:
                good = torch.tensor([number not in broken for number in chunk.tolist()])
                values = [x[good] for x in values]
            target = None if self.targets is None else values.pop()
            if len(values[0]):
                yield tuple(values), target

    def _finished(
        self, inputs: tuple[Tensor, ...], target: Tensor | None, draws: torch.Generator | None, device: torch.device
    ) -> Batch:
        first, rest = inputs[0].to(device, non_blocking=True), inputs[1:]
        target = None if target is None else target.to(device, non_blocking=True)
        if draws is not None and first.ndim == 4:
            spatial = self.spec.task in ("segmentation", "image")
            first, changed = change(first, target if spatial else None, self.spec.augment, draws)
            target = changed if spatial else target
        mean, std = (torch.tensor(v, device=device).view(-1, *[1] * (first.ndim - 2)) for v in (self.spec.mean, self.spec.std))
        # In place where the tensor is new: fresh memory costs more than the arithmetic.
        first = (scaled(first) - mean).div_(std)
        if target is not None:
            target = _as_numbers(target, self.spec)
        return Batch((first, *(scaled(x.to(device)) for x in rest)), target)


@dataclass(frozen=True)
class Data:
    """Everything a run may look at. `held_out` never overlaps the test data; `test` is read for measuring only.

    Attributes:
        notes: what was inferred, counted or left out, one sentence each; to be printed.
        own_test: the source has samples to test on; else some of the training samples were set aside for it.
    """

    train: Split
    held_out: Split
    test: Split
    spec: DataSpec
    notes: tuple[str, ...] = ()
    own_test: bool = True


def scaled(values: Tensor) -> Tensor:
    """Float32; 8-bit images on the scale 0-1."""
    return values.float().div_(255) if values.dtype == torch.uint8 else values.float()


def _as_numbers(target: Tensor, spec: DataSpec) -> Tensor:
    """Class numbers as whole numbers, labels and values as float32."""
    if spec.task in WHOLE:
        return target.long()
    if spec.task != "multilabel":
        return scaled(target)
    # Data that is read while running was looked at in part only.
    if not zeros_and_ones(target):
        raise BadInput(f"The labels of {spec.source} hold other numbers than 0 and 1. Correct them, or set task in a data.toml.")
    return target.float()


def change(images: Tensor, target: Tensor | None, how: Augment, draws: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Flip and shift a batch (n, c, h, w), each sample on its own; targets (n, h, w) or (n, c, h, w) move along.

    Pixels from beyond the border are 0, in masks the class that is ignored.
    """
    n, size = len(images), tuple(images.shape[-2:])
    flip = (torch.rand(n, generator=draws) < 0.5) & how.flip
    offset = torch.randint(0, 2 * how.shift + 1, (2, n), generator=draws)
    if not how.flip and not how.shift:
        return images, target
    rows = offset[0][:, None] + torch.arange(size[0])
    columns = torch.arange(size[1]).expand(n, -1)
    columns = torch.where(flip[:, None], columns.flip(1), columns) + offset[1][:, None]
    rows, columns = rows.to(images.device), columns.to(images.device)
    moved = _moved(images, rows, columns, how.shift, 0)
    if target is None:
        return moved, None
    if target.shape[-2:] != images.shape[-2:]:
        raise BadInput(
            f"Targets of {tuple(target.shape[-2:])} cannot be shifted along with images of {size}. "
            f"Set flip = false and shift = 0."
        )
    mask = target.ndim == 3
    together = _moved(target[:, None] if mask else target, rows, columns, how.shift, IGNORE if mask else 0)
    return moved, together[:, 0] if mask else together


def _moved(images: Tensor, rows: Tensor, columns: Tensor, border: int, fill: int) -> Tensor:
    padded = functional.pad(images, (border,) * 4, value=fill) if border else images
    n = torch.arange(len(images), device=images.device)[:, None, None]
    # Channels go last under the index, so that each looked-up pixel is one short copy.
    return channels_first(padded.permute(0, 2, 3, 1)[n, rows[:, :, None], columns[:, None, :]])


def too_many(broken: Sequence[str], total: int, share: float) -> str:
    """The refusal of a source with too many unreadable samples."""
    return (
        f"{len(broken)} of {total} images cannot be read, more than {share:.0%}: {name_some(broken)}. "
        f"Repair or delete them, or raise max_unreadable in a data.toml."
    )


def _mix(seed: int, epoch: int, purpose: int) -> int:
    # Distinct streams for order, sample and changes; a large odd factor keeps neighboring seeds apart.
    return (seed * 1_000_003 + epoch * 8 + purpose) % (1 << 62)


def cut(index: Tensor, share: float, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """(what stays, what is set aside), both ascending, at least one sample each."""
    if len(index) < 2:
        raise EmptyData(f"{name} has too few images to be split. Needed are at least 3; give more.")
    count = min(max(1, round(share * len(index))), len(index) - 1)
    mixed = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))]
    return mixed[count:].sort().values, mixed[:count].sort().values
