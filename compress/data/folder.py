"""Image folders.

root/train/cat/*.jpg  root/test/cat/*.jpg     parts by name; val/ (also valid/, validation/) where there is one
root/cat/*.jpg  root/dog/*.jpg                one part, split by seed
root/*.jpg                                    images without labels
root/images/*.jpg  root/masks/*.png           segmentation: a mask of class numbers for each image, same stem; 255: ignore
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from compress.data.image_source import Pictured, open_pictures
from compress.data.images import SUFFIXES
from compress.data.listing import image_files
from compress.data.part_names import PARTS
from compress.data.settings import Settings
from compress.data.sources import Source
from compress.data.stores import Files, name_some
from compress.errors import BadInput, EmptyData
from compress.user.wording import many


@dataclass(frozen=True)
class Listing:
    """Files of one part, sorted by name."""

    paths: tuple[str, ...]
    labels: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    others: int = 0  # files that are no images
    empty: tuple[str, ...] = ()  # class folders without an image
    odd: tuple[str, ...] = ()  # no regular files, and links that lead back


def open_folder(root: Path, settings: Settings, shape: tuple[int, ...] | None, draws: torch.Generator) -> Source:
    """An image folder as a source; in memory where it fits.

    Raises:
        BadInput: mixed or unknown layout, images of several sizes without a stated one, too many unreadable images.
        EmptyData: no image at all.
    """
    listings = {name: _list(path) for name, path in _parts(root).items()}
    notes = [f"{sum(x.others for x in listings.values())} files of {root} are no images and were left out."]
    notes = [] if notes[0].startswith("0 ") else notes
    if odd := [text for listing in listings.values() for text in listing.odd]:
        notes.append(f"{many(len(odd), 'entry', 'entries')} of {root} left out: {name_some(odd)}.")
    listings, said = _agreeing(listings, root)
    classes, lacking = _class_names(listings, settings, root)
    parts = {name: _pictured(listing, classes, root) for name, listing in listings.items()}
    return open_pictures(parts, classes, settings, shape, draws, str(root), [*notes, *said, *lacking])


def _pictured(listing: Listing, classes: Sequence[str] | None, root: Path) -> Pictured:
    if listing.masks:
        return Pictured(Files(listing.paths), masks=Files(listing.masks))
    if not listing.labels:
        return Pictured(Files(listing.paths))
    number = {name: i for i, name in enumerate(classes or ())}
    unknown = sorted(set(listing.labels) - number.keys())
    if unknown:
        raise BadInput(
            f"{root} has class folders that the data settings do not list: {', '.join(unknown[:5])}. Add them to classes."
        )
    return Pictured(Files(listing.paths), torch.tensor([number[name] for name in listing.labels]))


def looked_into(root: Path) -> tuple[Path, ...]:
    """The folders of a folder of images in which every file and folder counts: its parts, or all of it."""
    try:
        parts = _parts(root)
    except (BadInput, OSError):
        return (root,)
    return tuple(parts.values()) if len(parts) > 1 else (root,)


def _parts(root: Path) -> dict[str, Path]:
    folders = {path.name: path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    known = {PARTS[name.lower()]: path for name, path in folders.items() if name.lower() in PARTS}
    if not known or (len(folders) > len(known) and len(known) == 1):
        return {"train": root}
    if "train" not in known:
        raise BadInput(f"{root} has {', '.join(sorted(known))} but no train folder. Add train/, or give one folder to be split.")
    return known


def _list(root: Path) -> Listing:
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    names = {path.name: path for path in folders}
    if {"images", "masks"} <= names.keys():
        return _with_masks(names["images"], names["masks"])
    own, found = image_files(root, deep=False), {path.name: image_files(path, deep=True) for path in folders}
    direct, labeled = own.images, {name: below.images for name, below in found.items() if below.images}
    others = own.others + sum(below.others for below in found.values())
    odd = (*own.odd, *(text for below in found.values() for text in below.odd))
    if direct and labeled:
        raise BadInput(
            f"{root} has {many(len(direct), 'image')} of its own beside folders with images ({', '.join(list(labeled)[:5])}). "
            f"Needed are either class folders or images without labels: move one of the two away."
        )
    if direct:
        return Listing(direct, others=others, odd=odd)
    if not labeled:
        kinds = ", ".join(sorted(SUFFIXES))
        raise EmptyData(f"{root} has no images. Needed are files ({kinds}) in class folders, or without labels in one folder.")
    empty = tuple(name for name in found if name not in labeled)
    if len(labeled) == 1 and not empty:
        raise BadInput(
            f"{root} has one class folder only ({next(iter(labeled))}); needed are at least two. For images without labels give "
            f"that folder itself."
        )
    paths = [(path, name) for name, files in labeled.items() for path in files]
    return Listing(tuple(path for path, _ in paths), tuple(name for _, name in paths), others=others, empty=empty, odd=odd)


def _with_masks(images: Path, masks: Path) -> Listing:
    found, drawn = image_files(images, deep=False), image_files(masks, deep=False)
    paths, by_stem = found.images, {_stem(path): path for path in drawn.images}
    lonely = [path for path in paths if _stem(path) not in by_stem]
    if not paths:
        raise EmptyData(f"{images} has no images. Put images there, and a mask of the same name into {masks}.")
    if lonely:
        raise BadInput(f"{many(len(lonely), 'image')} without a mask of the same name in {masks}: {name_some(lonely)}.")
    return Listing(paths, (), tuple(by_stem[_stem(path)] for path in paths), found.others, odd=(*found.odd, *drawn.odd))


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _agreeing(listings: dict[str, Listing], root: Path) -> tuple[dict[str, Listing], list[str]]:
    """Parts that are labeled the way train/ is; the others are left out, and said so."""
    train, notes, kept = listings["train"], [], {}
    for name, listing in listings.items():
        if (bool(listing.labels), bool(listing.masks)) == (bool(train.labels), bool(train.masks)):
            kept[name] = listing
        else:
            notes.append(f"{root}/{name} has {'no ' if not listing.labels else ''}labels, unlike train/, and was left out.")
    return kept, notes


def _class_names(listings: dict[str, Listing], settings: Settings, root: Path) -> tuple[tuple[str, ...] | None, list[str]]:
    """Names of the classes in the order of their numbers, and notes on those that a part has no image of.

    Raises:
        BadInput: a class folder that there is nothing to learn from. Without it all later classes would move down by one.
    """
    train, remedy = set(listings["train"].labels), "list all classes in a data.toml, in the order of the model's outputs"
    if settings.classes is None and train:
        empty = sorted({name for listing in listings.values() for name in listing.empty} - train)
        if empty:
            kinds = ", ".join(sorted(SUFFIXES))
            raise BadInput(
                f"{root} has class folders without an image to train on: {', '.join(empty[:5])}. Put images there ({kinds}), "
                f"take the folders away if the model has no such class, or {remedy}."
            )
        extra = sorted({label for listing in listings.values() for label in listing.labels} - train)
        if extra:
            raise BadInput(f"{root} has test classes that are not in train/: {', '.join(extra[:5])}. Add them, or {remedy}.")
    names = settings.classes or tuple(sorted(train)) or None
    present = {part: set(listing.labels) for part, listing in listings.items()}
    lacking = {part: [name for name in names or () if name not in labels] for part, labels in present.items()}
    return names, [
        f"The {part} part of {root} has no image of {many(len(some), 'class', 'classes')}, whose numbers stay: {name_some(some)}."
        for part, some in lacking.items()
        if some and train
    ]
