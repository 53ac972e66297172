"""Detectors of transformers that predict a set of boxes from queries: DETR and RT-DETR (both versions).

    DETR       backbone and projection                       -> the map that its transformer reads
    RT-DETR    backbone, projections, encoder, projections   -> the maps that its decoder reads, and those that attention reads

The latter are outputs so that they keep their channels: code that adds numbers of their width, made of the size of the image,
goes on as it is, for every size.

Classes count from 0, in the order of the category ids. Pixels go from 0 to 1; what DETR sees is normalized as its image processor
does unless it is told otherwise.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from compress.errors import BadInput

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NORMALIZED = "DetrForObjectDetection"
KNOWN = (NORMALIZED, "RTDetrForObjectDetection", "RTDetrV2ForObjectDetection")


class Queries(nn.Module):
    """What a detector's decoder reads, of images as `pixels` gives them."""

    def __init__(self, detector: Any):
        super().__init__()
        whole = detector.model
        self.model = nn.Module()  # the names that its layers have in the detector
        parts = ("backbone", "input_projection", "encoder_input_proj", "encoder", "decoder_input_proj")
        single = hasattr(whole, "input_projection")
        for name in parts[:2] if single else (parts[0], *parts[2:]):
            setattr(self.model, name, getattr(whole, name))
        self.single = single

    @property
    def ends(self) -> list[nn.Module]:
        """Layers whose outputs are the first ones of the part, in its order."""
        whole: Any = self.model
        return [whole.input_projection] if self.single else list(whole.decoder_input_proj)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(n, 3, height, width) -> maps of the width that the decoder has, and of the width that attention has."""
        whole: Any = self.model
        found = whole.backbone.model(images)
        maps = list(found.feature_maps if hasattr(found, "feature_maps") else found)
        if self.single:
            return [whole.input_projection(maps[-1])]
        maps = [project(one) for project, one in zip(whole.encoder_input_proj, maps, strict=True)]
        stays = [maps[i] for i in whole.encoder.encode_proj_layers]
        maps = list(whole.encoder(maps).last_hidden_state)
        ends = whole.decoder_input_proj
        return [ends[i](maps[min(i, len(maps) - 1)]) for i in range(len(ends))] + stays


def is_known(model: nn.Module) -> bool:
    """Whether a module is a detector of transformers that is known here."""
    kind = type(model)
    return "transformers" in sys.modules and kind.__module__.startswith("transformers.") and kind.__name__ in KNOWN


def classes(model: nn.Module) -> int:
    """How many a detector tells apart."""
    return int(cast(Any, model).config.num_labels)


def pixels(model: nn.Module, images: Tensor) -> Tensor:
    """(n, 3, height, width) from 0 to 1, as the detector takes them."""
    if type(model).__name__ != NORMALIZED:
        return images
    mean, std = (images.new_tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
    return (images - mean) / std


def boxes(model: nn.Module, image: Tensor, ids: Sequence[int]) -> dict[str, Tensor]:
    """What a detector in eval mode says of one image (3, height, width): boxes in pixels, scores, and labels out of `ids`."""
    said: Any = model(pixel_values=pixels(model, image[None]))
    logits, places = said.logits[0], said.pred_boxes[0]
    if type(model).__name__ == NORMALIZED:
        scores, labels = logits.softmax(-1)[:, :-1].max(-1)
    else:
        scores, at = logits.sigmoid().flatten().topk(len(logits))  # as many as there are queries
        labels, places = at % logits.shape[1], places[at // logits.shape[1]]
    known = labels < len(ids)  # a class beyond the data's categories counts as none of them
    height, width = image.shape[1:]
    corners = torch.cat([places[:, :2] - places[:, 2:] / 2, places[:, :2] + places[:, 2:] / 2], 1)
    corners = corners * corners.new_tensor([width, height, width, height])
    numbers = torch.tensor(list(ids), device=labels.device)
    return {"boxes": corners[known], "scores": scores[known], "labels": numbers[labels[known]]}


def loss(model: nn.Module, images: Tensor, targets: Sequence[dict[str, Tensor]], ids: Sequence[int]) -> Tensor:
    """The detector's own loss, the mean over a batch; targets have boxes (left, top, right, bottom) in pixels, and labels.

    Raises:
        BadInput: a package that the loss needs is missing.
    """
    place = {id: number for number, id in enumerate(ids)}
    size = images.new_tensor([images.shape[3], images.shape[2]] * 2)
    labels: list[dict[str, Tensor]] = []
    for target in targets:
        found = target["boxes"].to(images)
        middle = torch.cat([(found[:, :2] + found[:, 2:]) / 2, found[:, 2:] - found[:, :2]], 1)
        numbers = torch.tensor([place[int(label)] for label in target["labels"]], dtype=torch.long, device=images.device)
        labels.append({"class_labels": numbers, "boxes": middle / size})
    try:
        return cast(Any, model)(pixel_values=pixels(model, images), labels=labels).loss
    except ImportError as error:  # boxes are assigned by scipy
        said = " ".join(str(error).split())[:160]
        raise BadInput(f"The loss of {type(model).__name__} needs a package that is not there ({said}). Install it.") from error
