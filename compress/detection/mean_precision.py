"""Mean average precision of a detector, as COCO counts it (by pycocotools), and how sure its loss is.

    value = mean over categories and overlaps 0.50, 0.55, ..., 0.95 of the area under precision over recall

The interval of a loss is a paired bootstrap: both detectors on the same images, drawn with replacement
(`compress.measure.drop` does the same with metrics that add up, which this one does not).
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from compress.detection import set_prediction
from compress.detection.coco import CocoImages
from compress.detection.set_prediction import Queries
from compress.detection.wholes import Yolo, found
from compress.errors import BadInput, MissingPackage

RESAMPLES = 500
MOST = 100
"""Boxes of an image that count, as COCO has it."""
LEAST_SCORE = 0.001  # of YOLO's boxes: as ultralytics validates

Box = dict[str, Any]


@dataclass(frozen=True)
class Precision:
    """Mean average precision as shares in 0-1: over all overlaps, and at an overlap of a half."""

    value: float
    at_half: float
    images: int


@dataclass(frozen=True)
class Lost:
    """Points of `value` that the second of two detectors lost, and their 95 % interval; below 0 where it gained."""

    points: float
    ci95: tuple[float, float]
    before: Precision
    after: Precision


@dataclass(frozen=True)
class Matched:
    """What a detector said of every image, and the mean average precision of that."""

    evaluated: Any
    precision: Precision


def mean_precision(model: nn.Module, data: CocoImages) -> Precision:
    """Mean average precision of a detector on data; the detector is left as it was.

    Raises:
        MissingPackage: pycocotools is not installed.
        BadInput: no detector, or no box in the data.
    """
    return matched(model, data).precision


def lost(dense: nn.Module, small: nn.Module, data: CocoImages, *, seed: int = 0) -> Lost:
    """What a smaller detector loses on data.

    Raises:
        MissingPackage, BadInput: as for `mean_precision`.
    """
    return between(matched(dense, data), matched(small, data), seed=seed)


def between(dense: Matched, small: Matched, *, seed: int = 0) -> Lost:
    """What the second of two detectors loses, of which the boxes are matched already."""
    pair = (dense.evaluated, small.evaluated)
    before, after = dense.precision, small.precision
    random, number = np.random.default_rng(seed), before.images
    points: list[float] = []
    for _ in range(RESAMPLES):
        drawn = random.integers(0, number, number)
        one, other = (_precision(_drawn(evaluated, drawn)).value for evaluated in pair)
        if min(one, other) >= 0:  # a draw without a box of any category says nothing
            points.append(100 * (one - other))
    low, high = np.percentile(points, [2.5, 97.5])
    return Lost(100 * (before.value - after.value), (float(low), float(high)), before, after)


def packages() -> tuple[Any, Any]:
    """The parts of pycocotools.

    Raises:
        MissingPackage: it is not installed.
    """
    try:
        return importlib.import_module("pycocotools.coco"), importlib.import_module("pycocotools.cocoeval")
    except ImportError as error:
        raise MissingPackage(
            "Mean average precision needs pycocotools, which is not installed. pip install 'entropress[detection]'"
        ) from error


def matched(model: nn.Module, data: CocoImages) -> Matched:
    """What a detector says of data, held against the true boxes; it is left as it was.

    Raises:
        MissingPackage, BadInput: as for `mean_precision`.
    """
    evaluated = _evaluated(model, data)
    return Matched(evaluated, _precision(evaluated))


def _evaluated(model: nn.Module, data: CocoImages) -> Any:
    """The evaluation of pycocotools with every box held against the true ones, image by image."""
    coco, evaluation = packages()
    true = _true(data)
    if not any(not box["iscrowd"] for box in true):
        raise BadInput("The data has no box; mean average precision needs some. Give images with annotations.")
    said = [box for record, boxes in zip(data.records, _boxes(model, data), strict=True) for box in _said(record.id, boxes)]
    images = [{"id": record.id} for record in data.records]
    categories = [{"id": id, "name": name} for id, name in data.categories.items()]
    sides: list[Any] = []
    with contextlib.redirect_stdout(io.StringIO()):
        for annotations in (true, said):
            side = coco.COCO()
            numbered = [{**box, "id": i + 1} for i, box in enumerate(annotations)]
            side.dataset = {"images": images, "categories": categories, "annotations": numbered}
            side.createIndex()
            sides.append(side)
        made = evaluation.COCOeval(*sides, "bbox")
        made.params.areaRng, made.params.areaRngLbl, made.params.maxDets = [[0, 1e10]], ["all"], [MOST]
        made.params.imgIds = [record.id for record in data.records]
        made.evaluate()
    return made


def _true(data: CocoImages) -> list[Box]:
    return [
        {"image_id": r.id, "category_id": label, "bbox": list(box), "area": box[2] * box[3], "iscrowd": int(crowd)}
        for r in data.records
        for box, label, crowd in zip(r.boxes, r.labels, r.crowds, strict=True)
    ]


def _said(id: int, boxes: dict[str, Tensor]) -> Iterator[Box]:
    for (left, top, right, bottom), score, label in zip(
        boxes["boxes"].tolist(), boxes["scores"].tolist(), boxes["labels"].tolist(), strict=True
    ):
        bbox = [left, top, right - left, bottom - top]
        yield {"image_id": id, "category_id": label, "bbox": bbox, "score": score, "area": bbox[2] * bbox[3], "iscrowd": 0}


def _precision(evaluated: Any) -> Precision:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluated.accumulate()
    found: Any = evaluated.eval["precision"]  # overlaps, recalls, categories, areas, numbers of boxes; -1 without true boxes
    means = [float(part[part > -1].mean()) if bool((part > -1).any()) else -1.0 for part in (found, found[0])]
    return Precision(means[0], means[1], len(evaluated.params.imgIds))


def _drawn(evaluated: Any, drawn: Any) -> Any:
    """The same evaluation of other images: those drawn, some several times."""
    made = object.__new__(type(evaluated))
    made.__dict__.update(evaluated.__dict__)
    number = len(evaluated.params.imgIds)
    made.evalImgs = [evaluated.evalImgs[k * number + i] for k in range(len(evaluated.params.catIds)) for i in drawn]
    return made


def _boxes(model: nn.Module, data: CocoImages) -> list[dict[str, Tensor]]:
    """What a detector says of each image alone, in eval mode."""
    whole = found(model)
    if whole is None:
        raise BadInput(
            f"{type(model).__name__} is no detector of torchvision, ultralytics or transformers that is known here; needed is "
            "one. Count with pycocotools yourself."
        )
    training = [(m, m.training) for m in model.modules()]
    there = next(model.parameters()).device
    ask = _yolo if isinstance(whole.part, Yolo) else set_prediction.boxes if isinstance(whole.part, Queries) else _torchvision
    try:
        model.eval()
        with torch.no_grad():
            return [ask(model, data[i][0].to(there), sorted(data.categories)) for i in range(len(data))]
    finally:
        for m, was in training:
            m.training = was


def _torchvision(model: nn.Module, image: Tensor, labels: Sequence[int]) -> dict[str, Tensor]:
    del labels  # they are the numbers of the outputs
    return model([image])[0]


def _yolo(model: nn.Module, image: Tensor, labels: Sequence[int]) -> dict[str, Tensor]:
    """As ultralytics validates; its classes count from 0, in the order of the category ids."""
    nms: Any = importlib.import_module("ultralytics.utils.nms")
    head = cast(Any, model).model[-1]
    found = nms.non_max_suppression(model(image[None]), LEAST_SCORE, 0.7, nc=head.nc, end2end=head.end2end)[0]
    numbers = found[:, 5].long()
    known = numbers < len(labels)  # a class beyond the data's categories counts as none of them
    ids = torch.tensor([*labels, *[0] * max(0, head.nc - len(labels))])
    return {"boxes": found[known, :4], "scores": found[known, 4], "labels": ids[numbers[known].cpu()]}
