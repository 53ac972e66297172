"""Does the quality before training tell which architecture is best after it? One budget, met by several methods, then trained.

    python benchmarks/architectures.py --nets folder --data cifar10 --work folder [--targets macs=0.39] [--lengths 0.25,1,3]

Every method decides how many channels each group keeps and which; reconstruction, training (the default, with the dense model as
the teacher) and images are the same. Beside them the architecture of the first method from fresh weights, under the same
training. Quality is top-1 on the 10,000 test images. Resumable: rows that are in the results are not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from finetune_rates import top1, trained
from opened import open_dense
from results_io import known, write

from compress import api
from compress.artifact import Artifact
from compress.checkpoint.load import load
from compress.data import open_data
from compress.recipe import make
from compress.training import reinitialized

NET = "resnet20"
METHODS = ("entropic", "obs", "taylor", "magnitude", "random")
FRESH = f"{METHODS[0]}, fresh weights"
Raced = Callable[[argparse.Namespace, Artifact, dict[str, Any]], dict[str, Any]]
"""(what was asked, the dense model, the row's key) -> the rest of the row."""


def main() -> None:
    trained_by(__doc__ or "", "architectures", "method", (*METHODS, FRESH), "0.25,1,3", raced)


def trained_by(about: str, file: str, column: str, names: Sequence[str], lengths: str, raced: Raced) -> None:
    """A row of the results for each length, target, seed and name of a way to begin; those that are there are not run again."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=Path, required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--targets", default="macs=0.39,macs=0.47")
    parser.add_argument("--lengths", default=lengths)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows: list[dict[str, Any]] = list(known(file).get("rows", ()))
    dense = open_dense(given.nets, NET)
    for epochs in map(float, given.lengths.split(",")):
        for target in given.targets.split(","):
            for seed in range(given.seeds):
                for name in names:
                    key = {"net": NET, "target": target, column: name, "epochs": epochs, "seed": seed}
                    if any(key.items() <= row.items() for row in rows):
                        continue
                    rows.append(key | raced(given, dense, key))
                    print(rows[-1], flush=True)
                    write(file, {"rows": rows})


def raced(given: argparse.Namespace, dense: Artifact, key: dict[str, Any]) -> dict[str, Any]:
    """One architecture, made once for all lengths of a seed, and trained."""
    fresh = key["method"] == FRESH
    method, seed = METHODS[0] if fresh else key["method"], key["seed"]
    settings: dict[str, Any] = {
        "model": str(given.nets / f"{NET}.pt"), "arch": f"{given.nets / 'nets.py'}:{NET}", "data": given.data, "align": 1,
        "epochs": 0.0, "threads": 1, "device": "cpu", "method": method, "target": key["target"], "seed": seed, "depth": 0,
    }  # fmt: skip
    out = given.work / f"{method}-{key['target']}-{seed}"
    if not (out / "model.compressed").exists():
        api.run(**settings, export="", out=out, force=True)
    recipe = make(**settings, from_scratch=fresh)
    data = open_data(recipe.data, shape=(3, 32, 32))
    begun = load(out / "model.compressed")
    stages = json.loads((out / "report.json").read_text())["stages"]
    sizes = {unit: round(stages[-1][unit] / stages[0][unit], 4) for unit in ("macs", "params")}
    before = top1(begun, data)
    if fresh:
        begun = reinitialized(begun, seed)[0]
    found = trained(begun, dense, data, recipe, key["epochs"], {})
    return sizes | {"before": before, "dense": top1(dense.module, data)} | found


if __name__ == "__main__":
    main()
