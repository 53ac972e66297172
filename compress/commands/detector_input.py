"""What `compress detector` is given: a whole detector, and images with boxes; and its part as other commands look at it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from compress.checkpoint.load.live_module import inside
from compress.commands.steps import context_of
from compress.detection import wholes
from compress.detection.coco import CocoImages, open_parts
from compress.detection.set_prediction import Queries
from compress.errors import BadInput, EmptyData, WholeDetector
from compress.pipeline.given import IN_MEMORY, resolved_recipe
from compress.pipeline.prepare import loaded_file, prepare
from compress.progress import Progress
from compress.recipe import Recipe, make
from compress.stage import Context
from compress.training.setup import seeded

STRIDE = 32
TEST_SAMPLES = 64
"""Images that the part is proven exact and its file equal on."""
OPENING = ("arch", "arch_kwargs", "trust_pickle", "weights_entry", "input_shape")
Place = str | Path
Parts = Place | CocoImages | Mapping[str, CocoImages]


def opened(model: nn.Module | Place, asked: Recipe) -> tuple[wholes.Whole, tuple[str, ...]]:
    """The detector, in memory or in the file that the recipe names, and what should be said of it."""
    if isinstance(model, nn.Module):
        module, notes = inside(model), ()
    else:
        loaded = loaded_file(asked)
        module, notes = loaded.module, loaded.notes
    if (whole := wholes.found(module)) is None:
        raise BadInput(
            f"{type(module).__name__} is no detector of torchvision (SSD, RetinaNet, FCOS, Faster R-CNN), ultralytics (YOLO, "
            "RT-DETR) or transformers (DETR, RT-DETR) that is known here; needed is one. 'compress run' takes models from "
            "tensors to tensors."
        )
    return whole, notes


def named_data(data: Parts) -> str:
    return str(data) if isinstance(data, str | Path) else f"{IN_MEMORY} (images with boxes)"


def parts_of(data: Parts, whole: wholes.Whole, asked: Recipe) -> tuple[CocoImages, CocoImages, tuple[str, ...]]:
    """Images to look at and those to count with, as the detector takes them."""
    if isinstance(data, str) and not data:
        raise BadInput("There is no data; needed is --data FOLDER, of images and boxes in COCO's format.")
    if isinstance(data, CocoImages):
        data = {"train": data, "test": data}
    if isinstance(data, Mapping):
        parts = [data.get("train"), data.get("test")]
        if not all(isinstance(part, CocoImages) for part in parts):
            raise BadInput("The data has no train and test of compress.detection.coco.open_coco; needed are both. Give them.")
        train, test = cast("list[CocoImages]", parts)
    else:
        train, test = open_parts(data, asked.seed)
    for part in (train, test):
        if not len(part):
            raise EmptyData("A part of the data has no image; needed is at least one. Add them.")
    if not any(record.boxes for record in test.records):
        raise EmptyData("The images to count with have no box, so that no precision can be counted; needed is one. Add them.")
    if asked.epochs and not any(record.boxes for record in train.records):
        raise EmptyData("The images to train on have no box; needed is one. Add them, or take --epochs 0.")
    if not isinstance(whole.part, wholes.Yolo | Queries):
        return train, test, ()
    sizes = train.sizes() | test.sizes()
    side = _side(asked, sizes)
    if side is None:
        return train, test, ()
    return (
        train.letterboxed(side),
        test.letterboxed(side),
        (f"Images were laid into squares of {side} pixels, with gray around.",),
    )


def _side(asked: Recipe, sizes: set[tuple[int, int]]) -> int | None:
    """Pixels of the square; None where all images have one size that the network takes."""
    if asked.input_shape:
        numbers = asked.input_shape[0].lower().split("x")
        side = int(numbers[-1]) if numbers[-1].isdigit() else 0
        if len(asked.input_shape) > 1 or numbers not in (["3", str(side), str(side)], [str(side)]) or side % STRIDE or not side:
            raise BadInput(
                f"--input-shape is '{' '.join(asked.input_shape)}'; needed is a square, its side a multiple of {STRIDE}, as "
                f"3x{wholes.SIDE}x{wholes.SIDE}."
            )
        return side
    only = next(iter(sizes))
    return None if len(sizes) == 1 and not any(n % STRIDE for n in only) else wholes.SIDE


def context_of_part(
    whole: wholes.Whole, train: CocoImages, test: CocoImages, settings: Mapping[str, Any], progress: Progress
) -> tuple[tuple[Tensor, ...], Context]:
    """What the part of a detector sees of images for training, and the part with that as its data."""
    asked = make(**{**settings, "model": IN_MEMORY})
    with seeded(asked.seed, torch.device("cpu")):
        seen, proof = whole.seen(train, asked.calibration), whole.seen(test, TEST_SAMPLES)
    given: Any = {"train": (seen, None), "test": (proof, None)}
    taken = {name: value for name, value in settings.items() if name not in OPENING}
    return seen, context_of(whole.part, given, taken, progress)[1]


def context_of_any(model: object, settings: Mapping[str, Any], progress: Progress, parts: bool) -> Context:
    """What a command works on that looks at a model; with `parts` of a whole detector the part of it, which is said.

    Raises:
        BadInput: model or data cannot be used.
        WholeDetector: a whole detector, without `parts`.
    """
    try:
        recipe, given = resolved_recipe(model, None, settings)
        return prepare(recipe, progress, given)[0]
    except WholeDetector as found:
        if not parts:
            raise
        whole = cast(wholes.Whole, wholes.found(cast(nn.Module, found.model)))
    asked = make(**{name: value for name, value in settings.items() if name != "data"}, model=IN_MEMORY)
    train, test, _ = parts_of(settings.get("data", ""), whole, asked)
    taken = {name: value for name, value in settings.items() if name != "data"}
    wholes.told_as_part(whole.model)
    return context_of_part(whole, train, test, taken, progress)[1]
