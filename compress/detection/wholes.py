"""A detector is a part that computes tensors between code that makes and chooses boxes; the part alone is traced.

    SSD, RetinaNet, FCOS     backbone -> heads
    Faster, Mask R-CNN       backbone -> (maps, heads of the proposals);  pooled maps of boxes -> box head -> box predictor
    YOLO (ultralytics)       layers -> the head's convolutions, of boxes, classes, keypoints and masks
    RT-DETR (ultralytics)    layers -> the maps that its transformer reads
    DETR, RT-DETR (transformers)    see `set_prediction`

The layers have in the part the names that they have in the detector, so that what was done to them can go back
(`compress.graph.surgery.put_back`). Maps that boxes are pooled from are outputs of the part and keep their channels; anchors read
sizes alone.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD

from compress.checkpoint.load.live_module import inside
from compress.detection import set_prediction
from compress.detection.set_prediction import Queries
from compress.errors import BadInput, CompressWarning, EmptyData, UnsupportedModel, WholeDetector
from compress.graph.surgery.put_back import put_back

SIDE = 640
"""Pixels of the squares that images of several sizes become for a network that takes one size alone."""
BOXES = 16
"""Proposals of each image that statistics are made of, drawn: they are what the box head sees, foreground and background."""
BATCH = 8
MOST_BYTES = 1e9
"""Of what the part sees, which is held in memory at once."""
EXACT = 1e-4  # of the largest output: the same layers in float32, convolutions of which a library may choose for another graph


@dataclass(frozen=True)
class Whole:
    """A detector and its part.

    Attributes:
        model: as it was given.
        part: computes tensors from tensors; shares its layers with the model.
        tensors: what the part sees when the detector is given images, samples along the first axis.
    """

    model: nn.Module
    part: nn.Module
    tensors: Callable[[Sequence[Tensor]], tuple[Tensor, ...]]

    def seen(self, data: object, count: int) -> tuple[Tensor, ...]:
        """What the part sees of the first `count` images of data, of fewer where that would be more than `MOST_BYTES`.

        Raises:
            BadInput, EmptyData: no images; see `images`.
        """
        given = images(data)
        first = next(given, None)
        if first is None:
            raise EmptyData("The data gives no image; needed is a tensor of shape (3, height, width). Give one.")
        training = [(m, m.training) for m in self.model.modules()]
        try:
            self.model.eval()
            with torch.no_grad():
                seen = self.tensors([first])
                fit = max(1, int(MOST_BYTES / sum(x.nbytes for x in seen)))
                further = list(islice(given, min(count, fit) - 1))
                return self.tensors([first, *further]) if further else seen
        finally:
            for m, was in training:
                m.training = was

    def with_layers(self, dense: GraphModule, small: GraphModule, inputs: tuple[Tensor, ...]) -> nn.Module:
        """A copy of the detector with the layers of `small`, whose part computes what `small` does.

        The detector's own code goes on where it does that by itself, for images of all sizes.

        Raises:
            UnsupportedModel: the detector's own code would compute something else with them.
        """
        with torch.no_grad():
            wanted = tree_leaves(small.cpu().eval()(*inputs))
        made = put_back(self.model, dense, small, rewriting=False)
        with suppress(Exception):  # whatever code raises that counts other channels
            if _computes(made, inputs, wanted):
                return made
        made = put_back(self.model, dense, small)
        if not _computes(made, inputs, wanted):
            raise UnsupportedModel(
                f"The code of {type(self.model).__name__} computes something else with the smaller layers than their graph does. "
                "Needed is code that takes its sizes from its tensors; compress.run on the part alone gives the graph."
            )
        return made


def found(model: nn.Module) -> Whole | None:
    """The detector that a module is; None for any other."""
    if isinstance(model, SSD | RetinaNet | FCOS):
        part = OneStage(cast(Any, model))
        return Whole(model, part, lambda given: (_transformed(model, given),))
    if isinstance(model, GeneralizedRCNN) and hasattr(model.roi_heads, "box_head"):
        return Whole(model, TwoStage(cast(Any, model)), lambda given: _pooled(model, given))
    if set_prediction.is_known(model):
        return Whole(model, Queries(model), lambda given: (set_prediction.pixels(model, _stacked(model, given)),))
    if _is_yolo(model):
        return Whole(model, Yolo(cast(Any, model)), lambda given: (_stacked(model, given),))
    return None


def part_of(model: object, inputs: object) -> tuple[Any, Any]:
    """The part of a detector, and what it sees of a list of images; any other model and its inputs as they are."""
    detector = found(inside(model)) if isinstance(model, nn.Module) and inputs is not None else None
    return (model, inputs) if detector is None else (detector.part, detector.seen(inputs, 1))


def refuse(model: nn.Module) -> None:
    """Refuse a whole detector where only a model from tensors to tensors will do.

    Raises:
        WholeDetector: it is one.
    """
    if found(whole := inside(model)) is not None:
        raise WholeDetector(
            f"The model is a whole detector ({type(whole).__name__}), whose code makes boxes of lists of images; needed is "
            "one that makes tensors of tensors. 'compress detector MODEL --data COCO_FOLDER' makes it smaller as a whole, with "
            "its mean average precision, and writes the part that computes tensors as ONNX; 'compress explain' and "
            "'compress analyze' look at that part. In Python compress.detector, compress.remove and compress.edit take it; "
            "compress.save and compress.export write that part, given inputs=[image].",
            whole,
        )


def told_as_part(model: nn.Module) -> None:
    """Say that what follows is of a part, and which command takes the whole."""
    warnings.warn(
        f"The model is a whole detector ({type(model).__name__}): this is of the part of it that computes tensors; "
        "'compress detector' makes the whole smaller.",
        CompressWarning,
        stacklevel=3,
    )


class OneStage(nn.Module):
    """Backbone and heads of SSD, RetinaNet or FCOS."""

    def __init__(self, detector: Any):
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """What the heads say of a batch of images."""
        return self.head(_maps(self.backbone(images)))


class TwoStage(nn.Module):
    """Backbone, heads of the proposals, and what is made of each box's piece of a map, of Faster R-CNN and its kin."""

    def __init__(self, detector: Any):
        super().__init__()
        self.backbone = detector.backbone
        # The names that they have in the detector.
        self.rpn, self.roi_heads = nn.Module(), nn.Module()
        self.rpn.head = detector.rpn.head
        self.roi_heads.box_head, self.roi_heads.box_predictor = detector.roi_heads.box_head, detector.roi_heads.box_predictor

    def forward(self, images: Tensor, pieces: Tensor) -> tuple[Any, ...]:
        """The maps that boxes are pooled from, what is said of anchors, and of each piece (n, boxes, c, h, w)."""
        maps = _maps(self.backbone(images))
        said = cast(Any, self.roi_heads.box_predictor)(cast(Any, self.roi_heads.box_head)(pieces.flatten(0, 1)))
        return maps, cast(Any, self.rpn.head)(maps), [one.unflatten(0, (-1, BOXES)) for one in said]


class Yolo(nn.Module):
    """Layers and head of a network of ultralytics, up to what boxes are decoded from."""

    def __init__(self, detector: Any):
        super().__init__()
        self.model, self.save = detector.model, frozenset(detector.save)

    def forward(self, images: Tensor) -> list[Any]:
        """Outputs of the head's convolutions."""
        *layers, head = cast("Iterable[Any]", self.model)
        x, kept = images, list[Any]()
        for layer in layers:
            x = layer(_of_layers(layer.f, x, kept))
            kept.append(x if layer.i in self.save else None)
        maps = _of_layers(head.f, x, kept)
        if hasattr(head, "input_proj"):  # a transformer reads all maps as one sequence, whose channels stay
            return [project(one) for project, one in zip(head.input_proj, maps, strict=True)]
        heads = [head.one2many] + ([head.one2one] if getattr(head, "one2one_cv2", None) is not None else [])
        said = [value for parts in heads for value in _said(head, maps, parts)]
        if hasattr(head, "proto"):  # masks; the newer kind is made of all maps
            said.append(_in_training(head.proto, maps if hasattr(head.proto, "feat_fuse") else maps[0]))
        return said


def _said(head: Any, maps: list[Any], parts: dict[str, Any]) -> list[Any]:
    found = _in_training(head, maps, call="forward_head", **parts)
    return [value for name, value in found.items() if name != "feats"]


def _in_training(part: Any, *args: Any, call: str = "__call__", **layers: Any) -> Any:
    """What a part says in training, where it may say more; its layers stay in the mode that they are in."""
    was = part.training
    # One that was fused has lost layers that only training needs.
    part.training = None not in (*layers.values(), *part._modules.values())
    try:
        return getattr(part, call)(*args, **layers)
    finally:
        part.training = was


def images(data: object) -> Iterator[Tensor]:
    """The images of data: tensors (c, h, w), alone, in pairs with targets, or in batches of either.

    Raises:
        BadInput: something else.
    """
    for item in cast("Iterable[object]", data.values() if isinstance(data, dict) else data):
        if isinstance(item, Tensor) and item.ndim in (3, 4) and item.is_floating_point():
            yield from (item,) if item.ndim == 3 else item
        elif isinstance(item, list | tuple) and item:
            several = cast("Sequence[object]", item)
            # (image, target), (images, targets), or a list of images
            yield from images(several if all(_image(one) for one in several) else several[:1])
        else:
            raise BadInput(
                f"The data of a detector gives a {type(item).__name__}; needed are images as tensors of shape (3, height, width) "
                "in real numbers, alone or in pairs with their targets, such as compress.detection.coco.open_coco gives them."
            )


def _image(one: object) -> bool:
    return isinstance(one, Tensor) and one.ndim == 3 and one.is_floating_point()


def _maps(given: Any) -> list[Tensor]:
    return [given] if isinstance(given, Tensor) else list(given.values())


def _of_layers(source: Any, x: Any, kept: list[Any]) -> Any:
    """What a layer of ultralytics reads: the layer before it (-1), another, or several."""
    if isinstance(source, int):
        return x if source == -1 else kept[source]
    return [x if i == -1 else kept[i] for i in source]


def _is_yolo(model: nn.Module) -> bool:
    tasks, heads = (sys.modules.get(f"ultralytics.nn.{name}") for name in ("tasks", "modules.head"))
    if tasks is None or heads is None or not isinstance(model, tasks.DetectionModel):
        return False
    head = cast(Any, model).model[-1]
    # A head with a forward of its own computes more than boxes, classes, keypoints and masks from the maps.
    known = [getattr(heads, name, None) for name in ("Detect", "Segment", "Segment26", "RTDETRDecoder")]
    return any(kind is not None and isinstance(head, kind) and type(head).forward is kind.forward for kind in known)


def _transformed(model: Any, given: Sequence[Tensor]) -> Tensor:
    """One batch, as the detector resizes, normalizes and pads it."""
    return model.transform(list(given))[0].tensors.cpu()


def _pooled(model: Any, given: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The images, and of each some pieces that the box head saw, drawn with torch's generator."""
    seen: list[Tensor] = []
    hook = model.roi_heads.box_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].cpu()))
    try:
        for image in given:  # alone, so that it is known which image a piece is of
            model([image])
    finally:
        hook.remove()
    pieces = [one[torch.randint(len(one), (BOXES,))] if len(one) else one.new_zeros(BOXES, *one.shape[1:]) for one in seen]
    return _transformed(model, given), torch.stack(pieces)


def _stacked(model: nn.Module, given: Sequence[Tensor]) -> Tensor:
    sizes = sorted({tuple(image.shape) for image in given})
    if len(sizes) > 1:
        raise BadInput(
            f"The images have the sizes {sizes[0]} and {sizes[1]}; {type(model).__name__} takes a batch of one size. Give them "
            "as the network sees them, letterboxed."
        )
    return torch.stack(list(given)).cpu()


def _computes(made: nn.Module, inputs: tuple[Tensor, ...], wanted: Sequence[Tensor]) -> bool:
    """Whether the part of a detector gives what is wanted; it is left as it was."""
    there = next(made.parameters()).device
    part = cast(Whole, found(made)).part
    training = [(m, m.training) for m in made.modules()]
    try:
        with torch.no_grad():
            got = [t.cpu() for t in tree_leaves(part.eval()(*(x.to(there) for x in inputs)))]
    finally:
        for m, was in training:
            m.training = was
    return len(got) == len(wanted) and all(a.shape == b.shape and _apart(a, b) <= EXACT for a, b in zip(got, wanted, strict=True))


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) if b.numel() else 0.0
