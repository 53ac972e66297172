"""Pruned before training: learned sensitivity beside SNIP and chance, LeNet-300-100 and LeNet-5 on MNIST.

    python benchmarks/sensitivity.py --data mnist.npz

Each untrained net loses 50, 80, 90 and 95 % of its weights, ranked over all layers together, and is trained then: three criteria,
the same initial weights, the same recipe. Learned sensitivity has had one more training by then, to learn from. Test accuracy.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from lottery import INPUT, NETS, TRAINING, said, top1
from results_io import RESULTS, spread, write

from compress.artifact import Artifact
from compress.data import Data, open_data
from compress.graph.trace.trace import trace
from compress.recipe import make
from compress.stage import Context
from compress.stages.sensitivity import Sensitivity
from compress.training import train
from compress.training.initial_weights import beginning

LEFT = (0.5, 0.2, 0.1, 0.05)
CRITERIA = ("learned", "snip", "random")


def row_of(net: str, criterion: str, left: float, seed: int, data: Data) -> dict[str, Any]:
    settings = {"method": "sensitivity", "initial": "drawn", "scope": "global", "device": "cpu"}
    settings |= {"target": f"weights={left}"} if left < 1 else {}
    recipe = make(seed=seed, **settings, **TRAINING)
    torch.manual_seed(seed)
    dense = Artifact(trace(NETS[net]().eval(), INPUT), INPUT)
    context = Context(dense, data, recipe, torch.device("cpu"))
    start = time.perf_counter()
    if criterion == "dense":
        done = train(beginning(dense, context).module, data, recipe).module
    else:
        done = Sensitivity(criterion)(dense, context).module  # type: ignore[arg-type]
    return {
        "net": net,
        "criterion": criterion,
        "left": left,
        "seed": seed,
        "top1": top1(done, data),
        "seconds": time.perf_counter() - start,
    }


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Test accuracy in % by net and share of the weights, over the seeds."""
    found = []
    for net, left in dict.fromkeys((r["net"], r["left"]) for r in rows):
        here = {
            c: [100 * r["top1"] for r in rows if (r["net"], r["left"], r["criterion"]) == (net, left, c)]
            for c in ("dense", *CRITERIA)
        }
        values = {c: v for c, v in here.items() if v}
        found.append(
            {"net": net, "left": left, **{c: spread(v) for c, v in values.items()}, "text": {c: said(v) for c, v in here.items()}}
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="mnist.npz")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    path = RESULTS / "sensitivity.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    rows = known["rows"] if known.get("training") == TRAINING else []
    cases = [("dense", 1.0), *((criterion, left) for left in LEFT for criterion in CRITERIA)]
    for seed in args.seeds:
        data = open_data(str(args.data), seed=seed)
        for net, (criterion, left) in [(net, case) for net in NETS for case in cases]:
            if any((r["net"], r["criterion"], r["left"], r["seed"]) == (net, criterion, left, seed) for r in rows):
                continue
            rows.append(row_of(net, criterion, left, seed, data))
            print(json.dumps(rows[-1]), flush=True)
            facts = {"data": "MNIST, 10,000 test images", "training": TRAINING, "threads": args.threads}
            write("sensitivity", {**facts, "summary": summary(rows), "rows": rows})


if __name__ == "__main__":
    main()
