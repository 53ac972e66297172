"""A small data set in COCO's format, drawn: squares, discs and triangles on noise. By seed, and nothing is downloaded."""

from __future__ import annotations

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

from compress.errors import BadInput

KINDS = ("square", "disc", "triangle")


def draw(folder: str | Path, *, count: int = 64, size: int = 160, seed: int = 0) -> Path:
    """Write `count` images and annotations.json into a new folder; `open_coco` opens it.

    Raises:
        BadInput: the folder has files in it, or an image would be smaller than 32 pixels.
    """
    root = Path(folder)
    if size < 32 or count < 1:
        raise BadInput(f"{count} images of {size} pixels were asked for; needed is one or more, of at least 32. Change it.")
    if root.exists() and any(root.iterdir()):
        raise BadInput(f"{root} has files in it; needed is a new folder. Give another one.")
    root.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    images: list[dict[str, object]] = []
    boxes: list[dict[str, object]] = []
    for number in range(1, count + 1):
        name = f"{number:05}.png"
        picture = Image.frombytes("RGB", (size // 4, size // 4), chance.randbytes(3 * (size // 4) ** 2)).resize((size, size))
        for _ in range(chance.randint(1, 3)):
            kind, box = chance.randrange(len(KINDS)), _box(chance, size)
            _shape(ImageDraw.Draw(picture), KINDS[kind], box, chance)
            left, top, right, bottom = box
            bbox = [left, top, right - left, bottom - top]
            one = {"id": len(boxes) + 1, "image_id": number, "category_id": kind + 1, "bbox": bbox, "iscrowd": 0}
            boxes.append({**one, "area": bbox[2] * bbox[3]})
        picture.save(root / name)
        images.append({"id": number, "file_name": name, "width": size, "height": size})
    categories = [{"id": i + 1, "name": kind} for i, kind in enumerate(KINDS)]
    (root / "annotations.json").write_text(json.dumps({"images": images, "categories": categories, "annotations": boxes}))
    return root


def _box(chance: random.Random, size: int) -> tuple[int, int, int, int]:
    side = chance.randint(size // 5, size // 2)
    left, top = chance.randint(0, size - side - 1), chance.randint(0, size - side - 1)
    return left, top, left + side, top + side


def _shape(pen: ImageDraw.ImageDraw, kind: str, box: tuple[int, int, int, int], chance: random.Random) -> None:
    colour = tuple(chance.choice((0, 255)) for _ in range(3))
    left, top, right, bottom = box
    if kind == "square":
        pen.rectangle(box, fill=colour)
    elif kind == "disc":
        pen.ellipse(box, fill=colour)
    else:
        pen.polygon([((left + right) // 2, top), (right, bottom), (left, bottom)], fill=colour)
