"""A detector that finds what it was trained to find, made smaller by `compress.detector`: mean average precision at every step.

    python benchmarks/trained_detector.py          # some minutes of one core

SSDlite on images of 128 pixels is trained from fresh weights on 480 drawn images (`compress.detection.drawn`), compressed to 0.7
of its multiply-accumulates, and trained for a sixth as long by its own losses. Counted on 120 other images: the detector as
trained, after removal and reconstruction by least squares, after the short training, and with the ONNX file in its part's place.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from results_io import write
from torch import nn
from torchvision.models.detection import ssdlite320_mobilenet_v3_large

import compress
from compress.detection.coco import open_coco
from compress.detection.drawn import draw
from compress.detection.own_losses import train
from compress.recipe import make

SIDE, EPOCHS, AFTER = 128, 24, 4
TRAINING: dict[str, Any] = {"batch_size": 16, "lr": 2e-3}


def fresh() -> nn.Module:
    """Images stay as large as they are; norms take their statistics from a short training."""
    torch.manual_seed(0)
    made: Any = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=4)
    made.transform.min_size, made.transform.max_size, made.transform.fixed_size = (SIDE,), SIDE, (SIDE, SIDE)
    for part in made.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.1
    return made


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        parts = {
            name: open_coco(draw(Path(folder) / name, count=count, size=SIDE, seed=seed))
            for name, count, seed in (("train", 480, 0), ("test", 120, 1))
        }
        start = time.perf_counter()
        trained, losses = train(fresh(), parts["train"], make(model="", epochs=EPOCHS, **TRAINING), torch.device("cpu"))
        took = time.perf_counter() - start
        print(f"trained in {took:.0f} s, loss {losses[0]:.3g} to {losses[-1]:.3g}", flush=True)
        out, said = Path(folder) / "out", lambda *what: print(*what, flush=True)
        made = compress.detector(
            trained.eval(), parts, target="macs=0.7", epochs=AFTER, out=out, rounds=10, calibration=128, progress=said, **TRAINING
        )
    report = made.report
    rows = [{"step": one.stage, **figures(one.quality), "params": one.params, "macs": one.macs} for one in report.stages]
    file = report.exports[0]
    rows.append({"step": "model.onnx", **figures(file.quality), "params": rows[-1]["params"], "macs": rows[-1]["macs"]})
    settings = {"side": SIDE, "epochs": EPOCHS, "epochs_after": AFTER, "target": "macs=0.7", **TRAINING}
    result = {"settings": settings, "training_s": round(took), "steps": rows, "verdict": report.verdict}
    print(write("trained_detector", result))
    print("\n".join(map(str, rows)))


def figures(found: Any) -> dict[str, Any]:
    """Mean average precision, and the interval of what was lost."""
    return {"map": round(found.value, 5), "drop_ci95": found.drop_ci95 and [round(x, 2) for x in found.drop_ci95]}


if __name__ == "__main__":
    main()
