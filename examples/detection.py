"""An object detector made smaller: run with `python examples/detection.py [FOLDER]`, or use its parts on the command line:

    compress run detector.pt --arch examples/detection.py:net --data examples/detection.py:data \
        --loss examples/detection.py:loss --metric examples/detection.py:found --target macs=0.5

A torchvision detector is a part that computes tensors (backbone and heads: it is traced and compressed) between two that make and
choose boxes, which stay as they are. Here the pictures are noise with one bright square or disc each, and the weights are fresh,
so that nothing is downloaded; a detector of your own takes their place in `net`.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.ssd import SSD
from torchvision.ops import box_iou

import compress
from compress.data import open_data
from compress.recipe import make
from compress.report.records import Report
from compress.training import train

SIZE = 96
CLASSES = 3  # background, square, disc


class Tensors(nn.Module):
    """The part of an SSD that computes: images in, per anchor four numbers of its box and a score per class out."""

    def __init__(self, detector: SSD):
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, images: Tensor) -> Tensor:
        """(n, 3, SIZE, SIZE) -> (n, anchors, 4 + CLASSES)."""
        found = self.head(list(self.backbone(images).values()))
        return torch.cat([found["bbox_regression"], found["cls_logits"]], 2)


@functools.cache
def detector() -> SSD:
    """Anchors, box coder and the choice of boxes are those of this one."""
    return ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES).eval()


def net() -> Tensors:
    """The network of `--arch`, with fresh weights."""
    made = Tensors(ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=CLASSES))
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.1  # theirs is made for long trainings
    return made


@functools.cache
def anchors() -> Tensor:
    """(anchors, 4): corners of the boxes that the network's outputs correct."""
    images = torch.zeros(1, 3, SIZE, SIZE)
    with torch.no_grad():
        features = list(detector().backbone(images).values())
    return detector().anchor_generator(ImageList(images, [(SIZE, SIZE)]), features)[0]


def boxes(output: Tensor) -> list[dict[str, Tensor]]:
    """What the whole detector says: boxes, scores and labels of each image, from the outputs of the network."""
    heads = {"bbox_regression": output[..., :4], "cls_logits": output[..., 4:]}
    count = len(output)
    return detector().postprocess_detections(heads, [anchors()] * count, [(SIZE, SIZE)] * count)


def data(count: int = 1000) -> dict[str, np.ndarray]:
    """Pictures (n, SIZE, SIZE, 3), and what the network should give for them, (n, anchors * (4 + CLASSES))."""
    random = np.random.default_rng(0)
    images = random.integers(0, 90, (count, SIZE, SIZE, 3)).astype(np.uint8)
    sides, kinds = random.integers(24, 56, count), random.integers(0, 2, count)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    targets = []
    for image, side, kind in zip(images, sides, kinds, strict=True):
        top, left = random.integers(0, SIZE - side, 2)
        if kind:
            inside = np.hypot(rows - top - side / 2, columns - left - side / 2) < side / 2
        else:
            inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
        image[inside] += 120
        targets.append(target(torch.tensor([[left, top, left + side, top + side]], dtype=torch.float32), 1 + int(kind)))
    wanted = torch.stack(targets).flatten(1).numpy()
    cut = count * 4 // 5
    return {"x_train": images[:cut], "y_train": wanted[:cut], "x_test": images[cut:], "y_test": wanted[cut:]}


def target(box: Tensor, label: int) -> Tensor:
    """What an image with one object asks of each anchor: (anchors, 4 + CLASSES), the last ones 1 for its class."""
    overlap = box_iou(box, anchors())[0]
    mine = overlap > min(0.5, float(overlap.max()) - 1e-6)
    where = detector().box_coder.encode_single(box.expand(len(overlap), 4), anchors())
    return torch.cat([where, functional.one_hot(mine * label, CLASSES).float()], 1)


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Smooth L1 of the boxes that hold an object, cross entropy of all, three times as many empty ones as others at most."""
    target = target.view_as(output)
    wrong = functional.cross_entropy(output[..., 4:].transpose(1, 2), target[..., 4:].argmax(-1), reduction="none")
    mine = target[..., 4] == 0
    hardest = (wrong * ~mine).sort(1, descending=True).values
    empty = hardest[:, : 3 * int(mine.sum(1).max())].sum()
    where = functional.smooth_l1_loss(output[..., :4][mine], target[..., :4][mine], reduction="sum")
    return (where + wrong[mine].sum() + empty) / mine.sum()


def found(output: Tensor, target: Tensor) -> float:
    """Share of images whose object the surest box has: the right class, and at least half of the area in common."""
    target = target.view_as(output)
    hits = 0
    for one, wanted in zip(boxes(output), target, strict=True):
        first = int(wanted[:, 4].argmin())
        true = detector().box_coder.decode_single(wanted[first : first + 1, :4], anchors()[first : first + 1])
        right = len(one["labels"]) > 0 and int(one["labels"][0]) == int(wanted[first, 4:].argmax())
        hits += right and float(box_iou(one["boxes"][:1], true)) >= 0.5
    return hits / len(output)


found.points = 100.0  # type: ignore[attr-defined]  # a share: a point is a percent


def main(folder: Path, epochs: float = 6) -> Report:
    """Train the detector, make it smaller, and compare the boxes."""
    here = Path(__file__).resolve()
    parts = {name: f"{here}:{name}" for name in ("data", "loss")}
    settings: dict[str, Any] = {**parts, "metric": f"{here}:found", "batch_size": 32}
    torch.manual_seed(0)
    dense = train(net(), open_data(parts["data"]), make(**settings, epochs=epochs, lr=3e-3, distill=0.0)).module
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dense.state_dict(), folder / "detector.pt")
    report = compress.run(
        folder / "detector.pt", arch=f"{here}:net", target="macs=0.5", epochs=epochs / 2, rounds=10, force=True,
        out=folder / "out", align=8, depth=0, **settings,  # no races of layers, to keep it short
    )  # fmt: skip
    assert isinstance(report, Report), "not a dry run"
    print(report.verdict)
    model = compress.load(folder / "out" / "model.compressed")
    images = next(open_data(parts["data"]).test.batches(2)).inputs[0]
    with torch.no_grad():
        for one in boxes(model(images)):
            print(
                [round(x) for x in one["boxes"][0].tolist()],
                f"class {int(one['labels'][0])}, score {float(one['scores'][0]):.2f}",
            )
    return report


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "detection-example"))
