"""Lottery tickets on MNIST: accuracy against sparsity, original initial weights beside others, LeNet-300-100 and LeNet-5.

    python benchmarks/lottery.py --data mnist.npz

For each seed weights are drawn and the dense net is trained; then level by level the smallest weights of each layer go, down to
2 % of them, and both variants are trained with the recipe of the dense net (no distillation). The best epoch is chosen on 6,000
held-out images; test accuracy is what stands in the rows. `--channels` asks the same of LeNet-5 with whole channels, of the
parameters that are left; `--rewind` of weights as they are after the first epoch. Finished variants are written at once.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from mnist import lenet5
from results_io import RESULTS, spread, write
from torch import nn

from compress.artifact import Artifact
from compress.data import Data, open_data
from compress.graph.trace.trace import trace
from compress.measure import quality
from compress.recipe import make
from compress.stage import Context
from compress.stages.lottery import Lottery

INPUT = (torch.zeros(1, 1, 28, 28),)
TRAINING: dict[str, Any] = {"epochs": 3, "lr": 2e-3, "batch_size": 128, "weight_decay": 1e-4}
PRUNE = 0.4


def lenet_300_100() -> nn.Sequential:
    """266,610 parameters."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))


NETS = {"LeNet-300-100": lenet_300_100, "LeNet-5": lenet5}
KINDS: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "weights": (tuple(NETS), {"target": "weights=0.02", "variants": ("original", "random")}),
    "rewound": (("LeNet-5",), {"target": "weights=0.02", "variants": ("original",), "rewind": 1}),
    "channels": (("LeNet-5",), {"target": "params=0.05", "variants": ("original", "random"), "structure": "channels"}),
}


def top1(module: nn.Module, data: Data) -> float:
    metric, _ = quality.choose("top1", "classification", True)
    return quality.evaluate(module, data.test.batches(500), metric).value


def rows_of(net: str, kind: str, seed: int, data: Data) -> list[dict[str, Any]]:
    """All levels of all variants of one seed."""
    recipe = make(method="lottery", initial="drawn", prune=PRUNE, seed=seed, device="cpu", **TRAINING, **KINDS[kind][1])
    torch.manual_seed(seed)
    dense = Artifact(trace(NETS[net]().eval(), INPUT), INPUT)
    context = Context(dense, data, recipe, torch.device("cpu"))
    stage, found, start = Lottery(), [], time.perf_counter()
    stage.check(dense, context)
    for level in stage.levels(dense, context):
        found.append(
            {
                "net": net,
                "kind": kind,
                "seed": seed,
                "variant": level.variant,
                "level": level.number,
                "left": level.left,
                "held_out": level.held_out.value,
                "top1": top1(level.artifact.module, data),
                "seconds": round(time.perf_counter() - start, 1),
            }
        )
        print(json.dumps(found[-1]), flush=True)
    return found


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per net, kind and level: test accuracy of both variants over the seeds, in %, and the original's lead."""
    found = []
    for net, kind, level in dict.fromkeys((r["net"], r["kind"], r["level"]) for r in rows):
        here = [r for r in rows if (r["net"], r["kind"], r["level"]) == (net, kind, level)]
        variants = {variant: [100 * r["top1"] for r in here if r["variant"] == variant] for variant in ("original", "random")}
        dense = [100 * r["top1"] for r in rows if (r["net"], r["kind"], r["level"], r["variant"]) == (net, kind, 0, "original")]
        row: dict[str, Any] = {"net": net, "kind": kind, "level": level, "left": sum(r["left"] for r in here) / len(here)}
        row |= {"dense": sum(dense) / len(dense), **{variant: spread(values) for variant, values in variants.items() if values}}
        row["text"] = {variant: said(values) for variant, values in variants.items()}
        if variants["random"]:
            lead = [a - b for a, b in zip(variants["original"], variants["random"], strict=True)]
            row["lead"] = spread(lead)
            row["text"]["lead"] = said(lead, "+.2f")
        row["at_least_dense"] = sum(a >= b for a, b in zip(variants["original"], dense, strict=True))
        found.append(row)
    return found


def said(values: list[float], form: str = ".2f") -> str:
    """Mean and extremes."""
    if not values:
        return "-"
    return f"{sum(values) / len(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="mnist.npz")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    path = RESULTS / "lottery.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    rows = known["rows"] if known.get("training") == TRAINING and known.get("prune") == PRUNE else []
    for kind, seed in [(kind, seed) for kind in args.kinds for seed in args.seeds]:
        data = open_data(str(args.data), seed=seed)
        for net in KINDS[kind][0]:
            if any((r["net"], r["kind"], r["seed"]) == (net, kind, seed) for r in rows):
                continue
            rows += rows_of(net, kind, seed, data)
            facts = {"data": "MNIST, 10,000 test images", "training": TRAINING, "prune": PRUNE, "threads": args.threads}
            write("lottery", {**facts, "summary": summary(rows), "rows": rows})


if __name__ == "__main__":
    main()
