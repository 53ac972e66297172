"""Training of a whole detector by the losses that its own class has.

torchvision's give them to a call in training mode, transformers' to one with labels; ultralytics' have `loss(batch)`. In the
latter two boxes are shares of the image around their middle, and classes count from 0 in the order of the category ids.
"""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from compress.detection import set_prediction
from compress.detection.coco import CocoImages, Target
from compress.detection.wholes import Yolo, found
from compress.errors import BadInput
from compress.progress import Progress, silent
from compress.recipe import Recipe
from compress.training.loop import rate
from compress.training.setup import optimizer_for, seeded, trainable


def classes(detector: nn.Module) -> int:
    """How many a detector tells apart; torchvision's have the background as class 0 among them."""
    model: Any = detector
    if _is_yolo(model):
        return int(model.model[-1].nc)
    if set_prediction.is_known(model):
        return set_prediction.classes(model)
    if hasattr(model, "roi_heads"):
        return int(model.roi_heads.box_predictor.cls_score.out_features)
    head = model.head.classification_head
    return int(getattr(head, "num_classes", 0) or head.num_columns)


def refuse_other_classes(detector: nn.Module, data: CocoImages) -> None:
    """Refuse data with a class that the detector has no output for.

    Raises:
        BadInput: there is one.
    """
    known = classes(detector)
    from_zero = _is_yolo(detector) or set_prediction.is_known(detector)
    most = len(data.categories) if from_zero else max(data.categories, default=0) + 1
    if most > known:
        counted = "categories" if from_zero else "classes, the background and every id up to the largest among them"
        raise BadInput(f"The data has {most} {counted}, the detector {known}. Give the data that it was trained on.")


def refuse_others_losses(detector: nn.Module) -> None:
    """Refuse to train where the losses need more than boxes.

    Raises:
        BadInput: masks, keypoints or turned boxes.
    """
    if _is_yolo(detector) and type(detector).__name__ in ("SegmentationModel", "PoseModel", "OBBModel"):
        raise BadInput(
            f"The losses of {type(detector).__name__} need more than boxes, which is all that is read here. Give --epochs 0, and "
            "train what comes out by a loop of your own."
        )


def train(
    detector: nn.Module, data: CocoImages, recipe: Recipe, device: torch.device, progress: Progress = silent
) -> tuple[nn.Module, tuple[float, ...]]:
    """A trained copy of a detector on the CPU, in its mode, and the mean loss of every epoch.

    Args:
        detector: of torchvision, of ultralytics for boxes, or of transformers.
        data: images, for all but torchvision's of one size, and boxes.
        recipe: epochs, batch_size, optimizer, lr, weight_decay, warmup, clip, seed.
        device: where it is computed.
        progress: told of steps.

    Raises:
        BadInput: a loss that is not finite.
    """
    made = copy.deepcopy(detector).to(device).train()
    _free(made)
    optimizer = optimizer_for(made, recipe)
    per_epoch = math.ceil(len(data) / recipe.batch_size)
    steps = max(1, round(recipe.epochs * per_epoch))
    means: list[float] = []
    order: list[int] = []
    sums: list[float] = []
    with seeded(recipe.seed, device):
        for step in range(steps):
            order = order or torch.randperm(len(data)).tolist()
            drawn, order = order[: recipe.batch_size], order[recipe.batch_size :]
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * rate(step, steps, math.ceil(recipe.warmup * steps))
            sums.append(_step(made, optimizer, [data[i] for i in drawn], sorted(data.categories), recipe.clip))
            if not math.isfinite(sums[-1]):
                raise BadInput(f"The detector's loss is {sums[-1]} at step {step + 1} of {steps}. Lower --lr.")
            if not order or step + 1 == steps:
                means.append(sum(sums) / len(sums))
                sums = []
            progress("finetune", (step + 1) / steps, f"step {step + 1} of {steps}")
    return made.cpu().train(detector.training), tuple(means)


def _step(made: nn.Module, optimizer: torch.optim.Optimizer, items: Sequence[Any], ids: Sequence[int], clip: float) -> float:
    device = next(made.parameters()).device
    images = [image.to(device) for image, _ in items]
    loss = loss_of(made, images, [target for _, target in items], ids)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if clip:
        nn.utils.clip_grad_norm_(trainable(made), clip)
    optimizer.step()
    return float(loss.detach())


def loss_of(detector: nn.Module, images: Sequence[Tensor], targets: Sequence[Target], ids: Sequence[int]) -> Tensor:
    """The sum of a detector's own losses on a batch, for a sample; `ids` are the categories of the data, in order."""
    model: Any = detector
    device = images[0].device
    if set_prediction.is_known(model):
        return set_prediction.loss(model, torch.stack(list(images)), targets, ids)
    if not _is_yolo(model):
        moved = [{name: value.to(device) for name, value in target.items()} for target in targets]
        return sum(model(list(images), moved).values(), torch.zeros((), device=device))
    _with_settings(model)
    height, width = images[0].shape[1:]
    place = {id: number for number, id in enumerate(ids)}
    boxes = torch.cat([target["boxes"] for target in targets])
    middle = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
    batch = {
        "img": torch.stack(list(images)),
        "batch_idx": torch.cat([torch.full((len(t["labels"]),), float(i)) for i, t in enumerate(targets)]),
        "cls": torch.tensor([[float(place[int(label)])] for t in targets for label in t["labels"]]).reshape(-1, 1),
        "bboxes": middle / torch.tensor([width, height, width, height]),
    }
    total, _ = model.loss({name: value.to(device) for name, value in batch.items()})
    return total.sum() / len(images)


def _with_settings(model: Any) -> None:
    """What the losses of ultralytics read: gains, in an object, which only its own trainer sets."""
    now = getattr(model, "args", None)
    if now is None or isinstance(now, dict):
        model.args = importlib.import_module("ultralytics.cfg").get_cfg(overrides=dict(cast("dict[str, Any]", now or {})))


def _free(model: nn.Module) -> None:
    """Weights of a file that was written for use alone are fixed, every one."""
    if any(p.requires_grad for p in model.parameters()):
        return
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.is_floating_point() and ".dfl." not in name)  # whose weights are numbers of bins


def _is_yolo(model: nn.Module) -> bool:
    whole = found(model)
    return whole is not None and isinstance(whole.part, Yolo)
