"""What the statistics cost: the pass beside a plain forward pass, sampling in accuracy, and the algebra of a wide network.

python benchmarks/statistics_pass.py --data cifar10 --nets nets

pass          seconds of one statistics pass / seconds of a plain forward pass over the same images, interleaved, median ratio
sampling      ResNet-20, half of the inner channels, whole refit: accuracy by how many positions the pass looks at
wide          VGG-16-BN at a quarter of its MACs: seconds of loss curves and choice, and of the refit of all layers; memory
"""

from __future__ import annotations

import argparse
import resource
import statistics as numbers
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from opened import decoded, open_dense
from resnet20 import INNER, WIDTHS, Bench
from results_io import write

from compress.artifact import Artifact, apply
from compress.data import from_arrays
from compress.edits import Keep, Plan
from compress.graph.channels.solve import solve
from compress.refit import refit
from compress.selection import budget, channels
from compress.stages.remove import Remove
from compress.statistics.collect import Sampling, Statistics, collect

IMAGES = 1000
SAMPLINGS = {
    "share 0.05": Sampling(0.05, 0.0),
    "share 0.2": Sampling(0.2, 0.2),
    "default": Sampling(),
    "share 4": Sampling(4.0, 8.0, 1e4),
}


def one_pass(bench: Bench, artifact: Artifact, sampling: Sampling) -> Statistics:
    groups = budget.removable(artifact.module, solve(artifact.module, artifact.inputs))
    batches = list(bench.data.train.batches(125, limit=IMAGES))
    return collect(
        artifact.module,
        lambda: (b.inputs for b in batches),
        channels.consumers(artifact.module, groups),
        images=IMAGES,
        device=torch.device("cpu"),
        task="classification",
        sampling=sampling,
    )


def forward(bench: Bench, artifact: Artifact) -> Callable[[], None]:
    batches = list(bench.data.train.batches(125, limit=IMAGES))

    def run() -> None:
        with torch.no_grad():
            for batch in batches:
                artifact.module(*batch.inputs)

    return run


def ratio(bench: Bench, artifact: Artifact, sampling: Sampling, rounds: int) -> dict[str, Any]:
    """Interleaved seconds of a pass and a forward pass, after one of each to warm up."""
    plain = forward(bench, artifact)
    seconds: dict[str, list[float]] = {"forward": [], "pass": []}
    for turn in range(rounds + 1):
        for name, call in (("forward", plain), ("pass", lambda: one_pass(bench, artifact, sampling))):
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds["pass"], seconds["forward"], strict=True)]
    return {"ratio": numbers.median(ratios), "ratios": ratios, **{f"{k}_seconds": numbers.median(v) for k, v in seconds.items()}}


def sampled(bench: Bench, sampling: Sampling, seed: int) -> float:
    """Accuracy after selection from this sampling and the usual refit."""
    context = bench.context(seed, IMAGES)
    groups = [g for g in solve(bench.dense.module, bench.dense.inputs).groups if g.name in INNER]
    losses = channels.Losses(bench.dense.module, one_pass(bench, bench.dense, sampling))
    curves = channels.sweeps(losses, groups, lambda share: None)
    edits = []
    for group, width in zip(groups, WIDTHS, strict=True):
        kept = channels.entropic(losses.of(group), curves[group.name], width // 2)
        edits.append(Keep(group.name, group.channels, tuple(sorted(kept))))
    return bench.top1(refit.refitted(apply(Plan(tuple(edits)), bench.dense), context))


def wide(bench: Bench) -> dict[str, Any]:
    """Seconds of the two halves of removal on VGG-16-BN."""
    context = bench.context(0, IMAGES, target="macs=0.25", align=1)
    artifact = bench.dense
    groups = list(budget.removable(artifact.module, solve(artifact.module, artifact.inputs)))
    start = time.perf_counter()
    found = refit.statistics(artifact, context, groups, states=False)
    collected = time.perf_counter()
    edits, _ = Remove("entropic").decide(artifact, context, channels.Losses(artifact.module, found))
    chosen = time.perf_counter()
    small = refit.refitted(apply(Plan(edits), artifact), context)
    done = time.perf_counter()
    return {
        "statistics_seconds": collected - start,
        "selection_seconds": chosen - collected,
        "refit_seconds": done - chosen,
        "selection_and_refit_seconds": done - collected,
        "gram_bytes": sum(m.nbytes for m in found.moments.values()),
        "largest_gram_bytes": max(m.nbytes for m in found.moments.values()),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "dense_top1": bench.top1(artifact),
        "top1": bench.top1(small),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="unpacked cifar10 folder: train/CLASS/*.jpg, test/CLASS/*.jpg")
    parser.add_argument("--nets", required=True, type=Path, help="folder of nets.py, resnet20.pt and vgg16_bn.pt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = from_arrays(dict(decoded(args.data)), normalize="cifar10", name="cifar10")
    nets = {name: Bench(open_dense(args.nets, name), data, []) for name in ("resnet20", "vgg16_bn")}
    results: dict[str, Any] = {"threads": args.threads, "images": IMAGES}
    results["wide"] = wide(nets["vgg16_bn"])
    print(results["wide"], flush=True)
    results["pass"] = {name: ratio(bench, bench.dense, Sampling(), args.rounds) for name, bench in nets.items()}
    print(results["pass"], flush=True)
    results["sampling"] = {
        label: {
            "top1": [sampled(nets["resnet20"], sampling, seed) for seed in range(args.seeds)],
            **ratio(nets["resnet20"], nets["resnet20"].dense, sampling, 2),
        }
        for label, sampling in SAMPLINGS.items()
    }
    print(results["sampling"], flush=True)
    write("statistics_pass", results)


if __name__ == "__main__":
    main()
