"""MobileNetV2 on CIFAR-10 (JPEG q75): width, depth and both, each with the same training, beside what was left untouched.

    python benchmarks/mobilenet.py --data cifar10 --work folder

The net is MobileNetV2 of width 0.5 with a stem of stride 1, trained here from fresh weights for `DENSE_EPOCHS` (short: a full
recipe takes ten times as long). Every row gets a fine-tuning of `--epochs` with distillation from the dense net; `control` is
the dense net with that training, and rows of equal epochs compare. Latency is that of ONNX Runtime in turns with the dense net.
Finished rows are written at once; rows that the result file has are not run again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from results_io import RESULTS, spread, write
from torch import nn
from torchvision.models import mobilenet_v2

from compress.data import open_data
from compress.measure import quality
from compress.pipeline.prepare import prepare
from compress.pipeline.run import run
from compress.recipe import make
from compress.training import train

DENSE_EPOCHS = 15
EPOCHS = 2
LR = 5e-2
ROWS: dict[str, dict[str, Any]] = {
    "width 0.65": {"method": "entropic", "target": "macs=0.65", "depth": 0},
    "width 0.5": {"method": "entropic", "target": "macs=0.5", "depth": 0},
    "depth 2": {"method": "depth", "depth": 2},
    "depth 4": {"method": "depth", "depth": 4},
    "width 0.75, depth 2": {"method": "entropic", "target": "macs=0.75", "depth": 2},
    "width 0.5, depth 2": {"method": "entropic", "target": "macs=0.5", "depth": 2},
    "width 0.3": {"method": "entropic", "target": "macs=0.3", "depth": 0},
    "width 0.25": {"method": "entropic", "target": "macs=0.25", "depth": 0},
    "depth 20": {"method": "depth", "depth": 20},
    "depth 4, then width 0.35": {"method": "entropic", "target": "macs=0.35", "depth": 4, "order": "depth-width"},
}
"""What is run; depth is in points of held-out quality before fine-tuning."""


def net() -> nn.Module:
    """MobileNetV2 at width 0.5 for small images: 700,490 parameters."""
    settings = [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1]]
    model = mobilenet_v2(num_classes=10, width_mult=0.5, inverted_residual_setting=settings, dropout=0.0)
    stem = model.get_submodule("features.0.0")
    assert isinstance(stem, nn.Conv2d)
    stem.stride = (1, 1)
    return model


def source(work: Path, data: Path) -> Path:
    """A data.toml for the unpacked images."""
    path = work / "cifar10.toml"
    path.write_text(
        f'source = "{data.resolve()}"\nmean = [0.4914, 0.4822, 0.4465]\nstd = [0.247, 0.2435, 0.2616]\n'
        "[augment]\nflip = true\nshift = 4\n"
    )
    return path


def dense_net(work: Path, data: Path) -> Path:
    """The state_dict of the trained dense net, from the work folder where it has one."""
    path = work / "mobilenet.pt"
    if not path.exists():
        torch.manual_seed(0)
        recipe = make(epochs=DENSE_EPOCHS, optimizer="sgd", lr=0.1, weight_decay=5e-4, batch_size=128, distill=0.0)
        trained = train(net(), open_data(str(source(work, data))), recipe)
        torch.save(trained.module.state_dict(), path)
    return path


def control(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The dense net with the training that every row gets."""
    context, metric = prepare(make(**settings(args, seed), depth=0))
    trained = train(context.dense.module, context.data, context.recipe, teacher=context.dense.module)
    top1, dense = (
        quality.evaluate(m, context.data.test.batches(500), metric).value for m in (trained.module, context.dense.module)
    )
    return {"dense": dense, "top1": top1, "faster": 1.0}


def compressed(args: argparse.Namespace, seed: int, **how: Any) -> dict[str, Any]:
    """One whole run."""
    with tempfile.TemporaryDirectory() as folder:
        report = run(make(**settings(args, seed), **how), Path(folder, "out"))
        edits = json.loads(Path(folder, "out", "plan.json").read_text())["edits"]
    dense, result = report.dense, report.result
    assert dense.latency and result.latency and dense.quality and result.quality
    return {
        "dense": dense.quality.value,
        "top1": result.quality.value,
        "faster": result.latency.ratio,
        "faster_ci95": result.latency.ci95,
        "params": result.params / dense.params,
        "macs": result.macs / dense.macs,
        "lines": sum(edit["edit"] == "linearize" for edit in edits),
        "merged": [edit["layers"] for edit in edits if edit["edit"] == "merge"],
        "stages": {
            s.stage: {"top1": s.quality and s.quality.value, "faster": s.latency and s.latency.ratio} for s in report.stages
        },
        "seconds": sum(s.seconds for s in report.stages),
        "notes": [note for note in report.notes if note.startswith(("Depth", "Channel")) or "merged" in note],
    }


def settings(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """What all rows have in common."""
    model, arch = dense_net(args.work, args.data), f"{Path(__file__).resolve()}:net"
    tuning = {"epochs": args.epochs, "optimizer": "sgd", "lr": LR, "seed": seed}
    where = {"threads": args.threads, "export": (), "device": "cpu"}
    return {"model": str(model), "arch": arch, "data": str(source(args.work, args.data)), **tuning, **where}


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Points below the dense net and below the control of the same seed, and speed, over the seeds."""
    found: dict[str, Any] = {}
    beside = {(row["seed"], row["epochs"]): row["top1"] for row in rows if row["row"] == "control"}
    for name, epochs in dict.fromkeys((row["row"], row["epochs"]) for row in rows):
        chosen = [row for row in rows if (row["row"], row["epochs"]) == (name, epochs)]
        found[f"{name}, {epochs:g} epochs"] = {
            "epochs": epochs,
            "seeds": len(chosen),
            "top1": spread([row["top1"] for row in chosen]),
            "faster": spread([row["faster"] for row in chosen]),
            "below_dense": spread([100 * (row["dense"] - row["top1"]) for row in chosen]),
        }
        paired = [100 * (beside[row["seed"], epochs] - row["top1"]) for row in chosen if (row["seed"], epochs) in beside]
        found[f"{name}, {epochs:g} epochs"]["below_control"] = spread(paired) if paired else {"mean": None}
    return found


STRONG = {"width": "width 0.3", "depth": "depth 20", "both": "depth 4, then width 0.35"}
"""The rows at about twice the speed that are held against each other."""


def strong(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Speed and points lost of these rows over the seeds, and what width alone loses more than both, seed by seed."""
    chosen = {kind: [r for r in rows if r["row"] == name and r["epochs"] == EPOCHS] for kind, name in STRONG.items()}
    found: dict[str, Any] = {
        kind: {"faster": spread([r["faster"] for r in same]), "lost": spread([100 * (r["dense"] - r["top1"]) for r in same])}
        for kind, same in chosen.items()
        if same
    }
    for alone in ("width", "depth"):
        pairs = [(b, a) for b in chosen["both"] for a in chosen[alone] if b["seed"] == a["seed"]]
        if pairs:
            found[f"beside_{alone}"] = {
                "points": spread([100 * (b["top1"] - a["top1"]) for b, a in pairs]),
                "speed": spread([b["faster"] / a["faster"] for b, a in pairs]),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="unpacked cifar10 folder: train/CLASS/*.jpg, test/CLASS/*.jpg")
    parser.add_argument("--work", required=True, type=Path, help="keeps the dense net between calls")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=["control", *ROWS], default=["control", *ROWS])
    parser.add_argument("--epochs", type=float, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    path = RESULTS / "mobilenet.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    rows = known.get("rows", [])
    for seed in args.seeds:
        for name in args.rows:
            if any((row["row"], row["seed"], row["epochs"]) == (name, seed, args.epochs) for row in rows):
                continue
            made = control(args, seed) if name == "control" else compressed(args, seed, **ROWS[name])
            rows.append({"row": name, "seed": seed, "epochs": args.epochs, **made})
            print(json.dumps(rows[-1]), flush=True)
            facts = {"network": "MobileNetV2, width 0.5, stem of stride 1", "data": "CIFAR-10 (JPEG q75), 10,000 test images"}
            facts |= {"dense_epochs": DENSE_EPOCHS, "threads": args.threads}
            write("mobilenet", {**facts, "summary": summary(rows), "strong": strong(rows), "rows": rows})


if __name__ == "__main__":
    main()
