"""Images with boxes in COCO's format: a folder of images, and a JSON file of what is on them.

    images/*.png    annotations.json = {"images":      [{"id": 1, "file_name": "a.png", "width": 320, "height": 240}, ...],
                                        "categories":  [{"id": 1, "name": "square"}, ...],
                                        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [x, y, width, height]}, ...]}

An item is what torchvision's detectors train on: an image in real numbers from 0 to 1, and boxes as (left, top, right, bottom)
with the category ids as labels. The file is somebody else's: everything that is read from it is looked at first.

Networks that take images of one size alone (YOLO) see them `letterboxed`: as large as fits, in the middle of gray. Boxes follow,
and their overlaps are what they were.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.functional import pil_to_tensor

from compress.data.images import colored, undecoded
from compress.errors import BadInput, EmptyData
from compress.user import files

Target = dict[str, Tensor]
Item = tuple[Tensor, Target]
Box = tuple[float, float, float, float]
GRAY = (114, 114, 114)
"""What ultralytics puts around images, too."""
ANNOTATIONS = ("annotations.json", "_annotations.coco.json")
TEST = ("test", "val", "valid", "validation")
_MOST = 2 * 2**30
"""Bytes of the file; that of the 118,000 training images of COCO has a quarter of it."""
_FARTHEST, _SMALLEST = 1e6, 0.1
"""Pixels: in float32 a box ends behind its beginning, without which detectors stop training."""
_LAST_CATEGORY = 1_000_000
_FEW, _PART = 1_000_000, 16
"""Lists and objects that the file may have: some, and one more for so many bytes of it; COCO's own has one for fifty."""
SHARE = 0.2
"""Of the images, drawn, that test where the folder has no such part."""


@dataclass(frozen=True)
class Fit:
    """How an image lies in a square: its size there, and where."""

    side: int
    width: int
    height: int
    left: int
    top: int


@dataclass(frozen=True)
class Record:
    """What is known of one image; boxes as (left, top, width, height), and whether each is a crowd, which nobody trains on."""

    id: int
    path: Path
    boxes: tuple[Box, ...]
    labels: tuple[int, ...]
    crowds: tuple[bool, ...]
    size: tuple[int, int] | None = None
    """Width and height of the image in pixels, where the file says them."""
    fit: Fit | None = None


class CocoImages(Dataset[Item]):
    """The images, read when they are needed; `categories` has the name of each label."""

    def __init__(self, records: list[Record], categories: Mapping[int, str]):
        self.records, self.categories = records, dict(categories)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Item:
        record = self.records[index]
        picture = _picture(record.path)
        if record.size is not None and picture.size != record.size:
            (wide, high), (told_wide, told_high) = picture.size, record.size
            raise BadInput(
                f"{record.path} has {wide}x{high} pixels, and {told_wide}x{told_high} in the file of its boxes, which would lie "
                "elsewhere. Give the images that the boxes were drawn on."
            )
        image = pil_to_tensor(_laid(picture, record.fit)).float() / 255
        single = ~torch.tensor(record.crowds, dtype=torch.bool)
        boxes = torch.tensor(record.boxes, dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return image, {"boxes": boxes[single], "labels": torch.tensor(record.labels, dtype=torch.int64)[single]}

    def letterboxed(self, side: int) -> CocoImages:
        """The same images and boxes in squares of so many pixels."""
        return CocoImages([_fitted(record, side) for record in self.records], self.categories)

    def sizes(self) -> set[tuple[int, int]]:
        """Height and width of every image, of which no more than the head is read."""
        found = {_picture(record.path, head=True).size for record in self.records}
        return {(height, width) for width, height in found}


def _picture(path: Path, head: bool = False) -> Image.Image:
    try:
        if not head:
            return colored(path)
        with undecoded(path) as file:
            return file
    # PIL raises a dozen kinds over damaged bytes; ultralytics replaces Image.open, and asks for a package where PIL gives up.
    except Exception as error:
        said = "it is no image that PIL knows" if isinstance(error, ModuleNotFoundError) else error
        raise BadInput(f"{path} cannot be read as an image ({said}). Replace it, or take it out.") from error


def _fitted(record: Record, side: int) -> Record:
    width, height = _picture(record.path, head=True).size
    scale = side / max(width, height)
    wide, high = max(1, round(width * scale)), max(1, round(height * scale))
    fit = Fit(side, wide, high, (side - wide) // 2, (side - high) // 2)
    x, y = wide / width, high / height
    boxes = tuple((a * x + fit.left, b * y + fit.top, w * x, h * y) for a, b, w, h in record.boxes)
    return replace(record, boxes=boxes, fit=fit)


def _laid(picture: Image.Image, fit: Fit | None) -> Image.Image:
    if fit is None:
        return picture
    square = Image.new("RGB", (fit.side, fit.side), GRAY)
    square.paste(picture.resize((fit.width, fit.height), Image.Resampling.BILINEAR), (fit.left, fit.top))
    return square


def open_parts(folder: str | Path, seed: int = 0) -> tuple[CocoImages, CocoImages]:
    """Images to look at and train on, and images to count with.

    Args:
        folder: of the images and their annotations.json; or with such folders train and test (or val); or as COCO is unpacked:
            annotations/instances_train2017.json beside train2017 or images/train2017, and the same of val. Where nothing is
            there to count with, a fifth of the images is drawn for it.
        seed: of that.

    Raises:
        BadInput, EmptyData: as for `open_coco`.
    """
    root = files.boxes(str(folder))
    if not is_coco(root):
        raise BadInput(f"The folder {root} has no boxes. {files.BOXES_NEEDED}")
    train = _part(root, ("train",))
    test = _part(root, TEST)
    every = train or open_coco(root, next((root / name for name in ANNOTATIONS if (root / name).is_file()), None))
    if test is not None:
        return every, test
    order = list(range(len(every)))
    random.Random(seed).shuffle(order)
    cut = max(1, round(SHARE * len(order)))
    if cut >= len(order):
        raise EmptyData(f"{root} has {len(order)} image; needed are some to look at and some to count with. Add images.")
    parts = (sorted(order[cut:]), sorted(order[:cut]))
    train, test = (CocoImages([every.records[i] for i in part], every.categories) for part in parts)
    return train, test


def is_coco(folder: str | Path) -> bool:
    """Whether a folder is laid out as `open_parts` takes it."""
    root = Path(folder)
    parts = [root / name for name in ("", "train", *TEST)]
    return any((part / name).is_file() for part in parts for name in ANNOTATIONS) or any(
        (root / "annotations").glob("instances_*.json")
    )


def _part(root: Path, names: tuple[str, ...]) -> CocoImages | None:
    """The first of these parts that is there."""
    for name in names:
        for file in ANNOTATIONS:
            if (root / name / file).is_file():
                return open_coco(root / name, root / name / file)
        for path in sorted((root / "annotations").glob(f"instances_{name}*.json")):
            images = path.stem.removeprefix("instances_")
            place = root / images if (root / images).is_dir() else root / "images" / images
            return open_coco(place, path)
    return None


def open_coco(folder: str | Path, annotations: str | Path | None = None) -> CocoImages:
    """Images with boxes.

    Args:
        folder: of the images, whose names in the file count from it.
        annotations: the JSON file; without it annotations.json in the folder.

    Raises:
        BadInput: a file that is missing, no JSON, or not of this format; names the entry.
        EmptyData: no image.
    """
    root = Path(folder)
    path = root / "annotations.json" if annotations is None else Path(annotations)
    try:
        text = files.content(path, _MOST)
        content = files.parsed_json(text, parts=_FEW + len(text) // _PART)
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({files.told(error)}); needed is COCO's JSON file. Name it.") from error
    except ValueError as error:
        raise BadInput(f"{path} is no JSON ({error}); needed is COCO's JSON file. Correct it.") from error
    lists = {name: _entries(content, name, path) for name in ("images", "categories", "annotations")}
    categories = {id: str(one.get("name", id)) for id, one in _by_id(lists["categories"], "category", path).items()}
    if odd := [id for id in categories if not 1 <= id <= _LAST_CATEGORY]:
        raise BadInput(
            f"{path} has the category id {odd[0]}; needed are ids from 1 (0 is the background) to {_LAST_CATEGORY}. Change it."
        )
    images = _by_id(lists["images"], "image", path)
    if not images:
        raise EmptyData(f"{path} names no image; needed is at least one. Add them.")
    found = {id: _file(root, one, path) for id, one in images.items()}
    sizes = {id: (one.get("width"), one.get("height")) for id, one in images.items()}
    boxes: dict[int, list[tuple[Box, int, bool]]] = {id: [] for id in found}
    for one in lists["annotations"]:
        of, label = _whole(one, "image_id", path), _whole(one, "category_id", path)
        for number, known, what in ((of, found, "image"), (label, categories, "category")):
            if number not in known:
                raise BadInput(f"{path} has a box of the {what} {number}, which it does not list. Add it, or leave the box out.")
        boxes[of].append((_box(one, path, *sizes[of]), label, _crowd(one, path)))
    return CocoImages([_record(id, file, boxes[id], sizes[id]) for id, file in found.items()], categories)


def _record(id: int, file: Path, boxes: list[tuple[Box, int, bool]], size: tuple[Any, Any]) -> Record:
    told = size if all(type(side) is int for side in size) else None
    return Record(id, file, tuple(b for b, _, _ in boxes), tuple(n for _, n, _ in boxes), tuple(c for _, _, c in boxes), told)


def _entries(content: Any, name: str, path: Path) -> list[dict[str, Any]]:
    entries: Any = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in cast("list[Any]", entries)):
        raise BadInput(f"{path} has no list '{name}' of objects; needed are images, categories, annotations. Write it so.")
    return cast("list[dict[str, Any]]", entries)


def _whole(entry: Mapping[str, Any], name: str, path: Path) -> int:
    value = entry.get(name)
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadInput(f"{path} has {name} {value!r} in {str(dict(entry))[:80]}; needed is a whole number. Correct it.")
    return value


def _by_id(entries: list[dict[str, Any]], what: str, path: Path) -> dict[int, dict[str, Any]]:
    found = dict[int, dict[str, Any]]()
    for entry in entries:
        if (id := _whole(entry, "id", path)) in found:
            raise BadInput(f"{path} has the {what} id {id} twice, and boxes of it could mean either. Give each one of its own.")
        found[id] = entry
    return found


def _crowd(entry: Mapping[str, Any], path: Path) -> bool:
    value = entry.get("iscrowd") or 0
    if value not in (0, 1):
        raise BadInput(f"{path} has iscrowd {str(value)[:40]} on image {entry.get('image_id')}; needed is 0 or 1. Correct it.")
    return bool(value)


def _file(root: Path, entry: Mapping[str, Any], path: Path) -> Path:
    name = entry.get("file_name")
    with suppress(ValueError, OSError):  # no name that a file can have
        file = root / name if isinstance(name, str) else None
        if file is not None and file.resolve().is_relative_to(root.resolve()) and file.is_file():
            return file
    raise BadInput(f"{path} names the image {str(name)[:200]!r}; needed is a file inside {root}. Correct it.")


def _box(entry: Mapping[str, Any], path: Path, wide: Any, high: Any) -> Box:
    box: Any = entry.get("bbox")
    numbers = cast("list[Any]", box) if isinstance(box, list) else []
    plain = len(numbers) == 4 and all(type(n) in (int, float) and abs(n) < _FARTHEST for n in numbers)
    if not plain or min(numbers[2:]) < _SMALLEST:
        raise BadInput(
            f"{path} has the box {str(box)[:60]} on image {entry.get('image_id')}; needed are [x, y, width, height] in "
            f"pixels, the last two at least {_SMALLEST}. Correct it."
        )
    left, top, width, height = (float(n) for n in numbers)
    beyond = any(
        isinstance(size, int) and (start >= size or start + length <= 0)
        for start, length, size in ((left, width, wide), (top, height, high))
    )
    if beyond:
        raise BadInput(
            f"{path} has the box {str(box)[:60]} on image {entry.get('image_id')}, outside of its {wide}x{high} pixels; needed "
            "are [x, y, width, height] in pixels, from the left upper corner. Correct it."
        )
    return left, top, width, height
