"""Detectors as they are built, smaller in their own class: torchvision's, ultralytics' and transformers', where these are there.

    python benchmarks/detectors.py                       # every detector that results/detectors.json lacks or has with an error
    python benchmarks/detectors.py --only ssd fcos       # these, again

Weights are random and so are the statistics of every norm. For each detector, each in a process of its own:

    removable     channels in groups that can go, of all channels of the part that is traced; what holds most of the others
    smaller       parameters of the detector before, and after a random third of every removable group has gone (compress.edit)
    equal         largest difference of the part of the detector that came back from the smaller graph, of the largest output
    trains        its own losses on images with boxes, and a backward pass: all finite, and how many parameters have a gradient
    ONNX          the smaller part, exported and compared with torch in ONNX Runtime
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from results_io import known, write
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchvision.models import detection
from zoo import random_edits

import compress
import exporters
from compress.detection import set_prediction
from compress.detection.wholes import Whole, found
from compress.edits import Plan
from compress.graph.channels.solve import Channels, solve
from compress.graph.trace.trace import trace

LIMIT = 900
RESULT = "result: "
CLASSES = 4
ONNX_IMAGES = 1
Found = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], choices=DETECTORS)
    parser.add_argument("--detector", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.detector:
        torch.set_num_threads(1)
        print(RESULT + json.dumps(looked_at(args.detector)))
        return
    rows: dict[str, Found] = known("detectors").get("detectors", {})
    for name in args.only or [name for name in DETECTORS if "error" in rows.get(name, {"error": ""})]:
        rows[name] = in_own_process(name)
        versions = {package: of(package) for package in ("torchvision", "ultralytics", "transformers")}
        write("detectors", {"versions": versions, "detectors": {name: rows[name] for name in DETECTORS if name in rows}})
        print(name, json.dumps(rows[name]), flush=True)


def of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def in_own_process(name: str) -> Found:
    command = [sys.executable, __file__, "--detector", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"more than {LIMIT} s"}
    lines = [line.removeprefix(RESULT) for line in done.stdout.splitlines() if line.startswith(RESULT)]
    problem = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:300]
    return json.loads(lines[-1]) if lines else {"error": problem}


# ---- detectors ---------------------------------------------------------------------------------------------------------------


def torchvision(name: str, size: int | None) -> tuple[nn.Module, list[Tensor]]:
    """A detector of torchvision and two images; `size` where it resizes to what it is told."""
    told = {} if size is None else {"min_size": size, "max_size": size}
    make: Any = getattr(detection, name)
    detector: nn.Module = make(weights=None, weights_backbone=None, num_classes=CLASSES, **told)
    side = size or 300
    return detector, [torch.rand(3, side, side), torch.rand(3, side, side)]


def ultralytics(name: str) -> tuple[nn.Module, list[Tensor]]:
    """A detector of ultralytics from its own description, and two images as it sees them."""
    tasks: Any = importlib.import_module("ultralytics.nn.tasks")
    defaults: Any = importlib.import_module("ultralytics.cfg").get_cfg()
    kinds = {"pose": tasks.PoseModel, "seg": tasks.SegmentationModel, "obb": tasks.OBBModel}
    kind = tasks.RTDETRDetectionModel if name.startswith("rtdetr") else kinds.get(name.rpartition("-")[2], tasks.DetectionModel)
    detector = kind(f"{name}.yaml", verbose=False)
    detector.args, detector.nc = defaults, detector.yaml["nc"]  # what its loss reads, which its trainer sets
    return detector.train(), [torch.rand(3, 160, 160), torch.rand(3, 160, 160)]


def transformers(name: str) -> tuple[nn.Module, list[Tensor]]:
    """A detector of transformers as its configuration has it, with a backbone of transformers, and two images as it sees them."""
    library: Any = importlib.import_module("transformers")
    config = getattr(library, f"{name}Config")(**BACKBONES.get(name, dict)())
    return getattr(library, f"{name}ForObjectDetection")(config).train(), [torch.rand(3, 160, 160), torch.rand(3, 160, 160)]


def resnet() -> dict[str, Any]:
    library: Any = importlib.import_module("transformers")
    backbone = library.ResNetConfig(out_features=["stage4"])
    return {"backbone_config": backbone, "use_timm_backbone": False, "use_pretrained_backbone": False}


BACKBONES: dict[str, Callable[[], dict[str, Any]]] = {"Detr": resnet}
YOLO = (
    "v5n",
    "v8n",
    "v8n-pose",
    "v8n-seg",
    "v8n-obb",
    "v10n",
    "11n",
    "11n-pose",
    "11n-seg",
    "26n",
    "26n-pose",
    "26n-seg",
    "26n-obb",
)
DETECTORS: dict[str, Callable[[], tuple[nn.Module, list[Tensor]]]] = {
    "SSDlite": partial(torchvision, "ssdlite320_mobilenet_v3_large", None),
    "SSD": partial(torchvision, "ssd300_vgg16", None),
    "RetinaNet": partial(torchvision, "retinanet_resnet50_fpn", 160),
    "FCOS": partial(torchvision, "fcos_resnet50_fpn", 160),
    "Faster R-CNN": partial(torchvision, "fasterrcnn_resnet50_fpn", 160),
    **{f"YOLO{name}": partial(ultralytics, f"yolo{name}") for name in YOLO},
    "RT-DETR": partial(ultralytics, "rtdetr-l"),
    "DETR (transformers)": partial(transformers, "Detr"),
    "RT-DETR (transformers)": partial(transformers, "RTDetr"),
    "RT-DETRv2 (transformers)": partial(transformers, "RTDetrV2"),
}


def build(name: str) -> tuple[nn.Module, list[Tensor]]:
    """Random weights, random statistics; no norm is the identity, where mistakes would be invisible."""
    torch.manual_seed(0)
    detector, images = DETECTORS[name]()
    with torch.no_grad():
        for owner in detector.modules():
            for key, t in (*owner.named_parameters(recurse=False), *owner.named_buffers(recurse=False)):
                if key == "running_mean":
                    t.normal_(0, 0.1)
                elif key == "running_var" or (key == "weight" and t.ndim == 1):
                    t.uniform_(0.5, 1.5)
    return detector, images


# ---- what is looked at -------------------------------------------------------------------------------------------------------


def looked_at(name: str) -> Found:
    detector, images = build(name)
    whole = found(detector)
    if whole is None:
        return {"error": "no detector that is known"}
    seen = whole.seen(images, 2)
    one = tuple(x[:1] for x in seen)
    channels = solve(trace(whole.part, one), one)
    made = compress.edit(detector, Plan(tuple(random_edits(channels.removable))), inputs=images)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (detector, made.model))
    return {
        **share(channels),
        "params_before": before,
        "params_after": after,
        "params_left": after / before,
        "own_class": type(made.model) is type(detector),
        "apart": apart(made, seen),
        **trains(made.model, images),
        "onnx": exported(made.model, images),
    }


def share(channels: Channels) -> Found:
    """What of the part's channels can go; of what stays, the reason that holds most."""
    total, free = (sum(g.channels for g in groups) for groups in (channels.groups, channels.removable))
    held: dict[str, int] = {}
    for group in channels.groups:
        if group.frozen:
            held[group.frozen] = held.get(group.frozen, 0) + group.channels
    return {"channels": total, "removable": free, "share": free / total, "stays": max(held, key=held.__getitem__, default="")}


def apart(made: Any, seen: tuple[Tensor, ...]) -> float:
    """The part of the detector that came back beside the graph that the same edits make."""
    from compress.artifact import apply

    small = apply(made.plan, made.traced).module.eval()
    again = found(made.model)
    assert again is not None
    modes = [(m, m.training) for m in made.model.modules()]
    with torch.no_grad():
        pairs = zip(tree_leaves(again.part.eval()(*seen)), tree_leaves(small(*seen)), strict=True)
        worst = max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-12)) for a, b in pairs)
    for m, was in modes:
        m.training = was
    return worst


def trains(detector: nn.Module, images: Sequence[Tensor]) -> Found:
    """One backward pass through the detector's own losses."""
    detector.train()
    lost = losses(detector, images)
    sum(lost.values(), torch.zeros(())).backward()
    learned = [p for p in detector.parameters() if p.requires_grad]
    given = sum(p.grad is not None and bool(p.grad.isfinite().all()) for p in learned)
    values = {name: value.item() for name, value in lost.items()}
    fine = all(math.isfinite(v) for v in values.values()) and given > 0.9 * len(learned)
    return {"losses": values, "with_gradient": given, "learned": len(learned), "trains": fine}


def losses(detector: nn.Module, images: Sequence[Tensor]) -> dict[str, Tensor]:
    model: Any = detector
    if isinstance(detector, nn.Module) and type(detector).__module__.startswith("torchvision"):
        box = {"boxes": torch.tensor([[20.0, 20, 120, 120]]), "labels": torch.tensor([1])}
        return model(list(images), [box for _ in images])
    count = len(images)
    if set_prediction.is_known(detector):
        target = {"boxes": torch.tensor([[20.0, 20, 120, 120]]), "labels": torch.tensor([1])}
        return {"loss": set_prediction.loss(detector, torch.stack(list(images)), [target] * count, [1])}
    batch = {
        "img": torch.stack(list(images)),
        "batch_idx": torch.arange(count).float(),
        "cls": torch.zeros(count, 1),
        "bboxes": torch.tensor([[0.5, 0.5, 0.6, 0.6, 0.1] if "OBB" in type(model).__name__ else [0.5, 0.5, 0.6, 0.6]]).repeat(
            count, 1
        ),
        "keypoints": torch.rand(count, 17, 3),
        "masks": torch.ones(count, 40, 40),
        "sem_masks": torch.zeros(count, 40, 40, dtype=torch.long),
    }
    total, _ = model.loss(batch)
    return {"loss": total.sum()}


def exported(detector: nn.Module, images: Sequence[Tensor]) -> str:
    """'equal', or what the export says."""
    whole: Whole | None = found(detector.eval())
    assert whole is not None
    seen = whole.seen(images[:ONNX_IMAGES], ONNX_IMAGES)
    with tempfile.TemporaryDirectory() as folder:
        try:
            exporters.export("onnx", trace(whole.part, seen), seen, Path(folder) / "part.onnx")
        except Exception as error:
            return f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return "equal"


if __name__ == "__main__":
    main()
