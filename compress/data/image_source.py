"""A source of encoded pictures, wherever their bytes lie: size and channels by their headers, in memory where they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.data.feeding import default_workers
from compress.data.geometry import PROBES, geometry
from compress.data.preparation import Preparation
from compress.data.settings import Settings
from compress.data.sources import Part, Source, number_classes, unreadable_out
from compress.data.splits import too_many
from compress.data.stores import Encoded, Pictures, Store, Stored, name_some, together
from compress.errors import BadInput
from compress.user.wording import many


@dataclass(frozen=True)
class Pictured:
    """Pictures of one part, with the number of their class (n,), a mask, or neither."""

    encoded: Encoded
    labels: Tensor | None = None
    masks: Encoded | None = None


def alike(found: Mapping[str, Pictured], where: str) -> tuple[dict[str, Pictured], list[str]]:
    """Parts that are labeled the way "train" is, and notes on the others, which are left out."""
    labeled = found["train"].labels is not None
    kept = {name: part for name, part in found.items() if (part.labels is not None) == labeled}
    said = f"{'no ' * labeled}labels, unlike train, and was left out."
    return kept, [f"The {name} part of {where} has {said}" for name in found if name not in kept]


def open_pictures(
    found: Mapping[str, Pictured],
    classes: Sequence[str] | None,
    settings: Settings,
    shape: tuple[int, ...] | None,
    draws: torch.Generator,
    where: str,
    notes: Sequence[str],
) -> Source:
    """Pictures as a source; in memory where they fit.

    Args:
        found: "train" and, where there are such, "val" and "test"; labeled alike.
        classes: names in the order of their numbers, where there are names.
        settings: what a data.toml says.
        shape: (channels, height, width) that the model takes, where it is known.
        draws: which headers are looked at.
        where: what messages call the source.
        notes: on how it was found.

    Raises:
        BadInput: pictures of several sizes without a stated one, too many unreadable ones, a task that needs other targets.
        EmptyData: none can be read.
    """
    channels, size, resize, told = geometry([part.encoded for part in found.values()], settings, shape, where, draws)
    train = found["train"]
    task = settings.task or ("segmentation" if train.masks else "classification")
    # Without labels the task says what the outputs mean.
    if task not in ("classification", "segmentation") and (train.labels is not None or train.masks):
        raise BadInput(f"{where} holds images, which have no targets for the task '{task}'. Give an .npz or module:factory.")
    total = sum(len(part.encoded) for part in found.values())
    fits = total * size[0] * size[1] * (channels + bool(train.masks)) <= settings.memory_gb * 1e9
    workers = default_workers() if settings.workers is None else settings.workers
    told.append(
        f"{many(total, 'image')} of {channels}x{size[0]}x{size[1]} "
        + ("were decoded into memory." if fits else "are decoded while running: they would not fit into memory_gb.")
    )
    parts, broken = dict[str, Part](), list[str]()
    for name, one in found.items():
        part = _part(one, size, channels, resize, settings.upright)
        if fits:
            part, bad = unreadable_out(part, where, workers)
            broken += bad
        parts[name] = part
    if len(broken) > settings.max_unreadable * total:
        raise BadInput(too_many(broken, total, settings.max_unreadable))
    if broken:
        told.append(f"{len(broken)} of {total} images cannot be read and were left out: {name_some(broken)}.")
    names = _checked_classes(parts, task, classes, where, workers)
    made = Preparation("files", "gray" if channels == 1 else "RGB", settings.resize if resize else None, settings.upright)
    example = train.encoded.name(0)
    return Source(
        parts, (channels, *size), task, names, notes=(*notes, *told), preparation=made, example=example, workers=workers
    )


def _part(found: Pictured, size: tuple[int, int], channels: int, resize: str | None, upright: bool) -> Part:
    images = Pictures(found.encoded, size, channels, resize, upright)
    if found.masks is not None:
        return Part((images,), Pictures(found.masks, size, 0, resize, upright))
    return Part((images,), None if found.labels is None else Stored(found.labels))


def _checked_classes(
    parts: Mapping[str, Part], task: str, names: Sequence[str] | None, where: str, workers: int
) -> tuple[str, ...] | None:
    targets = [part.targets for part in parts.values() if part.targets is not None]
    if not targets:
        return None if names is None else tuple(names)
    some = [next(together([store], [torch.arange(len(store))[: _looked_at(store)]], workers))[0] for store in targets]
    return number_classes(some, task, names, where)


def _looked_at(store: Store) -> int | None:
    return PROBES if isinstance(store, Pictures) else None
