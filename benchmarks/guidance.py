"""Entropy guidance: does a reward for the volume of layers make training converge faster, or end better?

    python benchmarks/guidance.py digits                                         # the demonstration's net, from fresh weights
    python benchmarks/guidance.py lenet5 --mnist mnist.npz                       # from fresh weights
    python benchmarks/guidance.py resnet20 --cifar cifar10 --nets nets           # fine-tuning after half of the MACs are gone

The same seeds, data and steps for every weight of the term; 0 is the training without it. Finished rows are written at once; rows
that the result file has are not run again.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mnist import lenet5
from opened import decoded, open_dense
from results_io import known, spread, write
from torch import nn

from compress.commands.demo import digits_net
from compress.data import Data, from_arrays, open_data
from compress.measure import quality
from compress.recipe import Recipe, make
from compress.stage import Context
from compress.stages.remove import Remove
from compress.training import Training, train

WEIGHTS = (0.0, 1e-4, 1e-3, 1e-2, -1e-3)
EPOCHS = {"digits": 6, "lenet5": 5, "resnet20": 2}
WHAT = {
    "digits": "a small residual net on scikit-learn's digits, from fresh weights",
    "lenet5": "LeNet-5 on MNIST, from fresh weights",
    "resnet20": "ResNet-20 on CIFAR-10 (JPEG q75), half of the MACs removed",
}

Trained = Callable[[int, float], tuple[Training, Data]]
"""(seed, weight of the term) -> the training, and its data."""


def of_digits(epochs: float) -> Trained:
    def trained(seed: int, weight: float) -> tuple[Training, Data]:
        data = open_data("digits", seed=seed)
        torch.manual_seed(seed)
        recipe = make(epochs=epochs, lr=5e-3, batch_size=64, distill=0.0, seed=seed, entropy_guidance=weight)
        return train(digits_net(), data, recipe), data

    return trained


def of_lenet5(path: Path, epochs: float) -> Trained:
    def trained(seed: int, weight: float) -> tuple[Training, Data]:
        data = open_data(str(path), seed=seed)
        torch.manual_seed(seed)
        recipe = make(epochs=epochs, lr=3e-3, batch_size=128, distill=0.0, seed=seed, entropy_guidance=weight)
        return train(lenet5(), data, recipe), data

    return trained


def of_resnet20(images: Path, nets: Path, epochs: float) -> Trained:
    data = from_arrays(dict(decoded(images)), normalize="cifar10", augment={"flip": True, "shift": 4}, name="cifar10")
    dense = open_dense(nets, "resnet20")
    removed: dict[int, nn.Module] = {}

    def trained(seed: int, weight: float) -> tuple[Training, Data]:
        def recipe(weight: float) -> Recipe:
            return make(target="macs=0.5", epochs=epochs, calibration=1000, align=1, seed=seed, entropy_guidance=weight)

        if seed not in removed:
            context = Context(dense, data, recipe(0.0), torch.device("cpu"))
            removed[seed] = Remove("entropic")(dense, context).module
        return train(removed[seed], data, recipe(weight), teacher=dense.module), data

    return trained


def row(trained: Trained, seed: int, weight: float) -> dict[str, Any]:
    start = time.perf_counter()
    found, data = trained(seed, weight)
    seconds = time.perf_counter() - start
    metric, _ = quality.choose("top1", "classification", True)
    return {
        "seed": seed,
        "weight": weight,
        "held_out": [epoch.quality for epoch in found.history],
        "test": quality.evaluate(found.module, data.test.batches(500), metric).value,
        "volume": next(note for note in found.notes if note.startswith("Entropy guidance")) if weight else "",
        "seconds": seconds,
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line per weight: means over the seeds, accuracies in percent, by epoch; the difference to no term is seed by seed."""
    plain = {r["seed"]: r for r in rows if r["weight"] == 0}
    lines: list[dict[str, Any]] = []
    for weight in WEIGHTS:
        chosen = [r for r in rows if r["weight"] == weight and r["seed"] in plain]
        if not chosen:
            continue
        epochs = range(len(chosen[0]["held_out"]))
        lines.append(
            {
                "weight": f"{weight:g}",
                "seeds": len(chosen),
                "held_out": [sum(100 * r["held_out"][e] for r in chosen) / len(chosen) for e in epochs],
                "test": spread([100 * r["test"] for r in chosen]),
                "gain": spread([100 * (r["test"] - plain[r["seed"]]["test"]) for r in chosen]),
                "slower": sum(r["seconds"] / plain[r["seed"]]["seconds"] for r in chosen) / len(chosen),
            }
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=list(EPOCHS))
    parser.add_argument("--mnist", type=Path, help="mnist.npz")
    parser.add_argument("--cifar", type=Path, help="unpacked cifar10 folder: train/CLASS/*.jpg, test/CLASS/*.jpg")
    parser.add_argument("--nets", type=Path, help="folder of nets.py and resnet20.pt")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--weights", type=float, nargs="+", default=list(WEIGHTS))
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    epochs = args.epochs or EPOCHS[args.net]
    if args.net == "digits":
        trained = of_digits(epochs)
    else:
        trained = of_lenet5(args.mnist, epochs) if args.net == "lenet5" else of_resnet20(args.cifar, args.nets, epochs)
    for seed in args.seeds:
        for weight in args.weights:
            mine = known("guidance").get(args.net, {"what": WHAT[args.net], "epochs": epochs, "rows": []})
            if mine["epochs"] != epochs:
                raise SystemExit(f"guidance.json has rows of {mine['epochs']} epochs; take them, or delete them.")
            if any((r["seed"], r["weight"]) == (seed, weight) for r in mine["rows"]):
                continue
            mine["rows"].append(row(trained, seed, weight))
            print(args.net, {k: v for k, v in mine["rows"][-1].items() if k != "volume"}, flush=True)
            write("guidance", {**known("guidance"), args.net: {**mine, "summary": summary(mine["rows"])}})


if __name__ == "__main__":
    main()
