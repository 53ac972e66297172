"""Image folders.

root/train/cat/*.jpg  root/test/cat/*.jpg     parts by name; val/ (also valid/, validation/) where there is one
root/cat/*.jpg  root/dog/*.jpg                one part, split by seed
root/*.jpg                                    images without labels
root/images/*.jpg  root/masks/*.png           segmentation: a mask of class numbers for each image, same stem; 255: ignore
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from compress.data.images import SUFFIXES, Header, header
from compress.data.listing import image_files
from compress.data.preparation import Preparation
from compress.data.settings import Settings
from compress.data.sources import Part, Source, number_classes, unreadable_out
from compress.data.splits import too_many
from compress.data.stores import Files, Stored, name_some
from compress.errors import BadInput, CompressWarning, EmptyData
from compress.user.wording import many

PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
PROBES = 256  # image headers looked at for the size and the number of channels


@dataclass(frozen=True)
class Listing:
    """Files of one part, sorted by name."""

    paths: tuple[Path, ...]
    labels: tuple[str, ...] = ()
    masks: tuple[Path, ...] = ()
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
    channels, size, resize, told = _geometry(listings, settings, shape, root, draws)
    notes += said + told
    task = settings.task or ("segmentation" if listings["train"].masks else "classification")
    # Without labels the task says what the outputs mean.
    if task not in ("classification", "segmentation") and (listings["train"].labels or listings["train"].masks):
        raise BadInput(f"{root} is an image folder, which has no targets for the task '{task}'. Give an .npz or module:factory.")
    classes, said = _class_names(listings, settings, root)
    notes += said
    total = sum(len(x.paths) for x in listings.values())
    fits = total * size[0] * size[1] * (channels + bool(listings["train"].masks)) <= settings.memory_gb * 1e9
    notes.append(
        f"{many(total, 'image')} of {channels}x{size[0]}x{size[1]} "
        + ("were decoded into memory." if fits else "are decoded while running: they would not fit into memory_gb.")
    )
    parts, broken = {}, []
    for name, listing in listings.items():
        part = _part(listing, size, channels, resize, classes, settings, root)
        if fits:
            part, bad = unreadable_out(part, str(root))
            broken += bad
        parts[name] = part
    if len(broken) > settings.max_unreadable * total:
        raise BadInput(too_many(broken, total, settings.max_unreadable))
    if broken:
        notes.append(f"{len(broken)} of {total} images cannot be read and were left out: {name_some(broken)}.")
    classes = _checked_classes(parts, task, classes, root)
    made = Preparation("files", "gray" if channels == 1 else "RGB", settings.resize if resize else None, settings.upright)
    return Source(
        parts, (channels, *size), task, classes, notes=tuple(notes), preparation=made, example=str(listings["train"].paths[0])
    )


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
    paths, by_stem = found.images, {path.stem: path for path in drawn.images}
    lonely = [str(path) for path in paths if path.stem not in by_stem]
    if not paths:
        raise EmptyData(f"{images} has no images. Put images there, and a mask of the same name into {masks}.")
    if lonely:
        raise BadInput(f"{many(len(lonely), 'image')} without a mask of the same name in {masks}: {name_some(lonely)}.")
    return Listing(paths, (), tuple(by_stem[path.stem] for path in paths), found.others, odd=(*found.odd, *drawn.odd))


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
    lacking = {part: [name for name in names or () if name not in listing.labels] for part, listing in listings.items()}
    return names, [
        f"The {part} part of {root} has no image of {many(len(some), 'class', 'classes')}, whose numbers stay: {name_some(some)}."
        for part, some in lacking.items()
        if some and train
    ]


def by(shape: Sequence[int]) -> str:
    """3x28x28."""
    return "x".join(map(str, shape))


def _geometry(
    listings: dict[str, Listing], settings: Settings, shape: tuple[int, ...] | None, root: Path, draws: torch.Generator
) -> tuple[int, tuple[int, int], str | None, list[str]]:
    """(channels, (height, width), how to resize, notes), from the settings, the model's input, or the images."""
    everything = [path for listing in listings.values() for path in listing.paths]
    some = sorted(torch.randperm(len(everything), generator=draws)[:PROBES].tolist())
    with ThreadPoolExecutor() as pool:
        headers = [found for found in pool.map(header, (everything[i] for i in some)) if found is not None]
    if not headers:
        raise EmptyData(f"None of {len(some)} images looked at in {root} can be read, such as {everything[some[0]]}.")
    sizes = sorted({one.upright if settings.upright else one.size for one in headers})
    gray = all(one.mode in ("1", "L", "LA", "F") or one.mode.startswith("I") for one in headers)
    notes = _said_of(headers, settings)
    channels = settings.channels or (1 if gray else 3)
    if settings.channels is None:
        notes.append(f"The images are {'gray: 1 channel' if gray else 'colored: 3 channels'}.")
    if shape is not None and len(shape) != 3:
        raise BadInput(
            f"The input shape is {by(shape) or 'scalar'}, and the images of {root} have channels, height and width. Give "
            "--input-shape 3x32x32 or the like, or leave it out."
        )
    if shape is not None and shape[0] != channels:
        raise BadInput(
            f"The input shape is {by(shape)}, and the images of {root} have {many(channels, 'channel')}. Give --input-shape "
            f"{by((channels, *shape[1:]))}, or leave it out; where the model takes {many(shape[0], 'channel')}, write channels = "
            f"{shape[0]} into a data.toml."
        )
    wanted = settings.size or (None if shape is None else (shape[1], shape[2]))
    if wanted is not None:
        if shape is not None and wanted != tuple(shape[1:]):
            raise BadInput(f"The input shape is {by(shape)}, the data settings say size = {list(wanted)}. Make them agree.")
        if len(sizes) == 1 and shape is not None and sizes[0][0] * wanted[1] != sizes[0][1] * wanted[0]:
            odd = (
                f"All images of {root} that were looked at are {by(sizes[0])}, and the input shape is {by(shape)}, of other "
                "proportions. If that is not what the model was trained on, correct --input-shape, or leave it out."
            )
            warnings.warn(odd, CompressWarning, stacklevel=2)
            notes.append(odd)
        if sizes != [wanted]:
            how = "scaled and cut to the center" if settings.resize == "crop" else "stretched"
            notes.append(f"Images of other sizes (such as {sizes[0][0]}x{sizes[0][1]}) are {how}: {wanted[0]}x{wanted[1]}.")
        return channels, wanted, settings.resize, notes
    if len(sizes) > 1:
        raise BadInput(
            f"The images of {root} have several sizes ({sizes[0][0]}x{sizes[0][1]} to {sizes[-1][0]}x{sizes[-1][1]}). "
            f"Give the model's with --input-shape CxHxW, or size = [H, W] in a data.toml."
        )
    notes.append(f"The input size {sizes[0][0]}x{sizes[0][1]} is that of the images.")
    return channels, sizes[0], None, notes


def _said_of(headers: Sequence[Header], settings: Settings) -> list[str]:
    """What some of the images are, and what is done with it."""
    turned, how = sum(one.turned for one in headers), "turned upright" if settings.upright else "used as stored"
    otherwise = "" if settings.upright else "; upright = true in a data.toml turns them"
    kinds = {
        f"have an EXIF orientation and are {how}{otherwise}": turned,
        "have 16 bits, of which the upper eight are used": sum(one.mode.startswith("I") for one in headers),
        "have transparency, which is left out": sum("A" in one.mode and one.mode != "LAB" for one in headers),
    }
    return [f"{count} of {len(headers)} images looked at {what}." for what, count in kinds.items() if count]


def _part(
    listing: Listing,
    size: tuple[int, int],
    channels: int,
    resize: str | None,
    classes: Sequence[str] | None,
    settings: Settings,
    root: Path,
) -> Part:
    images = Files(listing.paths, size, channels, resize, settings.upright)
    if listing.masks:
        return Part((images,), Files(listing.masks, size, 0, resize, settings.upright))
    if not listing.labels:
        return Part((images,))
    number = {name: i for i, name in enumerate(classes or ())}
    unknown = sorted(set(listing.labels) - number.keys())
    if unknown:
        raise BadInput(
            f"{root} has class folders that the data settings do not list: {', '.join(unknown[:5])}. Add them to classes."
        )
    return Part((images,), Stored(torch.tensor([number[name] for name in listing.labels])))


def _checked_classes(parts: dict[str, Part], task: str, names: Sequence[str] | None, root: Path) -> tuple[str, ...] | None:
    targets = [part.targets for part in parts.values() if part.targets is not None]
    if not targets:
        return None if names is None else tuple(names)
    some = [store.read(torch.arange(len(store))[: PROBES if isinstance(store, Files) else None]) for store in targets]
    return number_classes(some, task, names, str(root))
