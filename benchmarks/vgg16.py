"""VGG-16-BN on CIFAR-10 (JPEG q75): parameters, MACs, bytes and latency at how much quality, against a dense control?

    python benchmarks/vgg16.py control --data cifar10 --nets nets       # hours on a small machine at many epochs
    python benchmarks/vgg16.py compressed --data cifar10 --nets nets

The dense net was trained shortly, so more training alone makes it better: `control` is the dense net with the very training that
the compressed one gets (same epochs, same loss, the original as the teacher). Both halves write into results/vgg16.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path

import torch
from results_io import RESULTS, write

from compress.data import Data
from compress.measure import quality
from compress.pipeline.prepare import prepare
from compress.pipeline.run import run
from compress.recipe import Recipe, make
from compress.report.records import Report
from compress.training import train

PAPER = {"smaller": 8.85, "fewer_macs": 2.0, "faster": 1.67}


def settings(args: argparse.Namespace) -> Recipe:
    source = Path(args.work, "cifar10.toml")
    source.write_text(
        f'source = "{args.data}"\nmean = [0.4914, 0.4822, 0.4465]\nstd = [0.247, 0.2435, 0.2616]\n'
        "[augment]\nflip = true\nshift = 4\n"
    )
    return make(
        model=str(args.nets / "vgg16_bn.pt"), arch=f"{args.nets / 'nets.py'}:vgg16_bn", data=str(source), seed=args.seed,
        target=args.target, method=args.method, calibration=args.calibration, reconstruct=args.reconstruct,
        epochs=args.epochs, lr=args.lr, rounds=60,
    )  # fmt: skip


def control(recipe: Recipe) -> dict[str, object]:
    context, metric = prepare(recipe)
    start = time.perf_counter()

    def tell(what: str, share: float, detail: str) -> None:
        print(f"{share:6.1%} {detail}", flush=True)

    trained = train(context.dense.module, context.data, recipe, context.device, teacher=context.dense.module, progress=tell)
    return {
        "epochs": recipe.epochs,
        "dense_top1": top1(context.dense.module, context.data, metric),
        "control_top1": top1(trained.module, context.data, metric),
        "seconds": time.perf_counter() - start,
    }


def top1(module: torch.nn.Module, data: Data, metric: quality.Metric) -> float:
    return quality.evaluate(module, data.test.batches(500), metric).value


def compressed(recipe: Recipe, out: Path) -> dict[str, object]:
    def tell(what: str, share: float, detail: str) -> None:
        print(f"{what}: {share:6.1%} {detail}", flush=True)

    return told(recipe, run(recipe, out, progress=tell), out)


def told(recipe: Recipe, report: Report, out: Path) -> dict[str, object]:
    dense, result = report.dense, report.result
    assert dense.latency and result.latency and result.quality
    return {
        "target": recipe.target,
        "epochs": recipe.epochs,
        "reconstruct": recipe.reconstruct,
        "top1": result.quality.value,
        "smaller": dense.params / result.params,
        "fewer_macs": dense.macs / result.macs,
        "fewer_bytes": dense.file_bytes / result.file_bytes,
        "faster": result.latency.ratio,
        "faster_ci95": result.latency.ci95,
        "stages": [record.model_dump() for record in report.stages],
        "widths": [len(e["keep"]) for e in json.loads((out / "plan.json").read_text())["edits"] if e["edit"] == "keep"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("half", choices=("control", "compressed"))
    parser.add_argument("--data", required=True, type=Path, help="unpacked image folder with train/ and test/")
    parser.add_argument("--nets", required=True, type=Path, help="folder of nets.py and vgg16_bn.pt")
    parser.add_argument("--target", default="params=0.1")
    parser.add_argument("--method", default="entropic")
    parser.add_argument("--calibration", type=int, default=4000)
    parser.add_argument("--reconstruct", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="vgg16", help="of the result file")
    args = parser.parse_args()
    args.work = tempfile.mkdtemp()
    path = RESULTS / f"{args.name}.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known.pop("environment", None)
    recipe = settings(args)
    known[args.half] = control(recipe) if args.half == "control" else compressed(recipe, Path(args.work, "out"))
    if {"control", "compressed"} <= set(known):
        known["points_below_control"] = 100 * (known["control"]["control_top1"] - known["compressed"]["top1"])
    write(args.name, {"network": "VGG-16-BN, 14,728,266 parameters", "data": "CIFAR-10 (JPEG q75)", "paper": PAPER, **known})
    shutil.rmtree(args.work)


if __name__ == "__main__":
    main()
