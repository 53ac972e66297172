"""ResNet-20 on CIFAR-10 (JPEG q75): what is left when half, or 65 %, of the inner channels of all blocks go, without any labels?

    python benchmarks/resnet20.py --data cifar10 --nets nets

All rivals get the same MACs, the same images and the same refit; seconds are those of the whole stage, statistics included. The
rows come in the order of effort: selection alone, budget by loss and more images, block reconstruction, and, instead of the
last, one epoch of distillation with labels. Finished rows are written at once; rows that the result file has are not run again.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from opened import decoded, open_dense
from results_io import RESULTS, spread, write

from compress.artifact import Artifact, apply
from compress.data import Data, from_arrays
from compress.edits import Plan
from compress.measure import quality
from compress.measure.cost import cost
from compress.recipe import make
from compress.stage import Context
from compress.stages.finetune import Finetune
from compress.stages.reconstruct import Reconstruct
from compress.stages.remove import Remove

WIDTHS = (16, 16, 16, 32, 32, 32, 64, 64, 64)
INNER = tuple(f"layers.{i}.conv1" for i in range(9))
SHARES = {"half kept": 0.5, "35 % kept": 0.35}
FEW, MANY, STEPS = 1000, 4000, 400
LIMITS = {"half kept": {"linear": 6.5, "reconstructed": 2.8}, "35 % kept": {"linear": 11.0, "reconstructed": 6.0}}
RIVALS = {
    "random": "random",
    "L1": "magnitude",
    "Taylor": "taylor",
    "state entropy": "state-entropy",
    "block-OBS": "obs",
    "entropic, path only": "entropic-path",
    "entropic": "entropic",
}
BITS = "state entropy, budget by entropy"
ALLOCATED = "entropic, budget by loss, 4,000 images"
RECONSTRUCTED = "budget by loss, then block reconstruction"
INSTEAD = "budget by loss, then one epoch of distillation"
INSTEAD_PLAIN = "L1 without refit, then one epoch of distillation"


@dataclass(frozen=True)
class Bench:
    """The dense net, the data, and where rows go."""

    dense: Artifact
    data: Data
    rows: list[dict[str, Any]]

    def context(self, seed: int, images: int, **settings: Any) -> Context:
        recipe = make(seed=seed, calibration=images, device="cpu", **settings)
        return Context(self.dense, self.data, recipe, torch.device("cpu"))

    def top1(self, artifact: Artifact) -> float:
        metric, _ = quality.choose("top1", "classification", True)
        return quality.evaluate(artifact.module, self.data.test.batches(500), metric).value

    @functools.cached_property
    def dense_top1(self) -> float:
        return self.top1(self.dense)

    def has(self, label: str, kept: str, seed: int) -> bool:
        return any((r["recipe"], r["kept"], r["seed"]) == (label, kept, seed) for r in self.rows)

    def add(self, label: str, kept: str, seed: int, artifact: Artifact, seconds: float) -> None:
        dense = cost(self.dense.module, self.dense.inputs)
        value = self.top1(artifact)
        row = {
            "recipe": label,
            "kept": kept,
            "seed": seed,
            "top1": value,
            "drop_points": 100 * (self.dense_top1 - value),
            "macs_share": cost(artifact.module, artifact.inputs).macs / dense.macs,
            "params_share": cost(artifact.module, artifact.inputs).params / dense.params,
            "channels": [len(edit.keep) for edit in artifact.plan.edits],
            "seconds": seconds,
        }
        self.rows.append(row)
        print(f"{kept:10} seed {seed} {label:55} top-1 {value:.4f} drop {row['drop_points']:.2f} {seconds:.0f} s", flush=True)
        self.write()

    def write(self) -> None:
        write(
            "resnet20",
            {
                "network": "ResNet-20, 272,474 parameters, inner channels of its nine blocks",
                "data": "CIFAR-10 (JPEG q75), 10,000 test images",
                "threads": torch.get_num_threads(),
                "images": {"few": FEW, "many": MANY},
                "reconstruction_steps": STEPS,
                "dense_top1": self.dense_top1,
                "limits_drop_points": LIMITS,
                "summary": summary(self.rows),
                "rows": self.rows,
            },
        )


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Drop in points and seconds over the seeds, by what is kept and recipe."""
    found: dict[str, dict[str, Any]] = {}
    for kept in SHARES:
        for label in dict.fromkeys(r["recipe"] for r in rows):
            chosen = [r for r in rows if r["kept"] == kept and r["recipe"] == label]
            if chosen:
                found.setdefault(kept, {})[label] = {
                    "drop_points": spread([r["drop_points"] for r in chosen]),
                    "macs_share": spread([r["macs_share"] for r in chosen]),
                    "seconds": spread([r["seconds"] for r in chosen]),
                }
    return found


def selection_rows(bench: Bench, kept: str, seed: int) -> None:
    counts = dict(zip(INNER, (round(SHARES[kept] * w) for w in WIDTHS), strict=True))
    context = bench.context(seed, FEW)
    if not bench.has("L1 without refit", kept, seed):
        edits, _ = Remove("magnitude", groups=INNER, counts=counts).decide(bench.dense, context)
        bench.add("L1 without refit", kept, seed, apply(Plan(edits), bench.dense), 0.0)
    for label, selector in RIVALS.items():
        if not bench.has(label, kept, seed):
            start = time.perf_counter()
            done = Remove(selector, groups=INNER, counts=counts)(bench.dense, context)  # type: ignore[arg-type]
            bench.add(label, kept, seed, done, time.perf_counter() - start)
    if not bench.has(BITS, kept, seed):
        start = time.perf_counter()
        context = bench.context(seed, FEW, target=f"macs={equal_macs(bench, kept):.5f}", align=1)
        done = Remove("state-entropy", groups=INNER, share_alike=False)(bench.dense, context)
        bench.add(BITS, kept, seed, done, time.perf_counter() - start)


def best_rows(bench: Bench, kept: str, seed: int, *then: str) -> None:
    wanted = (ALLOCATED, *then)
    if all(bench.has(label, kept, seed) for label in wanted):
        return
    context = bench.context(seed, MANY, target=f"macs={equal_macs(bench, kept):.5f}", reconstruct=STEPS, epochs=1, align=1)
    start = time.perf_counter()
    removed = Remove("entropic", groups=INNER)(bench.dense, context)
    seconds = time.perf_counter() - start
    if not bench.has(ALLOCATED, kept, seed):
        bench.add(ALLOCATED, kept, seed, removed, seconds)
    for label, stage in ((RECONSTRUCTED, Reconstruct()), (INSTEAD, Finetune())):
        if label in wanted and not bench.has(label, kept, seed):
            start = time.perf_counter()
            bench.add(label, kept, seed, stage(removed, context), seconds + time.perf_counter() - start)


def plain_row(bench: Bench, kept: str, seed: int) -> None:
    if bench.has(INSTEAD_PLAIN, kept, seed):
        return
    counts = dict(zip(INNER, (round(SHARES[kept] * w) for w in WIDTHS), strict=True))
    context = bench.context(seed, FEW, epochs=1)
    edits, _ = Remove("magnitude", groups=INNER, counts=counts).decide(bench.dense, context)
    start = time.perf_counter()
    tuned = Finetune()(apply(Plan(edits), bench.dense), context)
    bench.add(INSTEAD_PLAIN, kept, seed, tuned, time.perf_counter() - start)


def equal_macs(bench: Bench, kept: str) -> float:
    """Share of the MACs that the same share of every block leaves."""
    context = bench.context(0, FEW)
    counts = dict(zip(INNER, (round(SHARES[kept] * w) for w in WIDTHS), strict=True))
    edits, _ = Remove("random", groups=INNER, counts=counts).decide(bench.dense, context)
    small = apply(Plan(edits), bench.dense)
    return cost(small.module, small.inputs).macs / cost(bench.dense.module, bench.dense.inputs).macs


def open_bench(folder: Path, nets: Path) -> Bench:
    """Data and net, and the rows that the result file has."""
    arrays = dict(decoded(folder))
    data = from_arrays(arrays, normalize="cifar10", augment={"flip": True, "shift": 4}, name="cifar10")
    path = RESULTS / "resnet20.json"
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return Bench(open_dense(nets, "resnet20"), data, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="unpacked cifar10 folder: train/CLASS/*.jpg, test/CLASS/*.jpg")
    parser.add_argument("--nets", required=True, type=Path, help="folder of nets.py and resnet20.pt")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    bench = open_bench(args.data, args.nets)
    cases = [(kept, seed) for seed in range(args.seeds) for kept in SHARES]
    for kept, seed in cases:
        best_rows(bench, kept, seed)
        selection_rows(bench, kept, seed)
    for kept, seed in cases:
        best_rows(bench, kept, seed, RECONSTRUCTED)
    for kept in SHARES:
        best_rows(bench, kept, 0, INSTEAD)
        plain_row(bench, kept, 0)
    bench.write()


if __name__ == "__main__":
    main()
