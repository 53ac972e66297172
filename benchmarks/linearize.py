"""Rectifiers taken away without any training: identities, lines, and lines with the layers behind them refitted.

    python benchmarks/linearize.py --data cifar10 --nets nets

rows      1, 2, 4 and 8 rectifiers of the lowest state entropy, ranked once on the dense net: drop of top-1 on the whole test set
pass      seconds of the entropy pass / seconds of a plain forward pass over the same images, interleaved, median ratio

Identities are what the papers put in place, before they train. The refit is the same for both kinds and takes no labels. Finished
rows are written at once; rows that the result file has are not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics as numbers
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from opened import decoded, open_dense
from resnet20 import Bench
from results_io import RESULTS, write
from torch import Tensor

from compress.artifact import Artifact, apply
from compress.data import Data, from_arrays
from compress.edits import Plan
from compress.entropy.closest_affine import AffineSums
from compress.refit import fit_activations
from compress.refit import refit as calibration
from compress.statistics.activation_states import observed
from compress.statistics.collect import Statistics, collect

NETS = {"resnet20": "ResNet-20, 272,474 parameters", "vgg16_bn": "VGG-16-BN, 14,728,266 parameters"}
COUNTS = (1, 2, 4, 8)
IMAGES = 1000
Fitter = Callable[[Bench, list[str]], Artifact]


def put(bench: Bench, sites: list[str], kind: str) -> Artifact:
    """Identities or lines, all fitted at once on the dense net."""
    return apply(Plan(fit_activations.fitted(bench.dense, bench.context(0, IMAGES), sites, kind)), bench.dense)


def in_sequence(bench: Bench, sites: list[str]) -> Artifact:
    """Lines fitted one after the other: from what reaches them behind the lines before, to what the dense net has there."""
    artifact = bench.dense
    for path, site in fit_activations.checked(artifact.module, sites).items():
        sums, got = AffineSums(site.axis), dict[str, Tensor]()
        dense, now = (observed(m, torch.device("cpu")) for m in (bench.dense.module, artifact.module))
        dense.get_submodule(path).register_forward_hook(lambda part, args, y, got=got: got.update(a=y))
        now.get_submodule(path).register_forward_pre_hook(lambda part, args, got=got: got.update(z=args[0]))
        with torch.no_grad():
            for batch in bench.data.train.batches(125, limit=IMAGES):
                dense(*batch.inputs), now(*batch.inputs)
                sums.add(got["z"], got["a"])
        artifact = apply(Plan((fit_activations.edit(path, sums.fit()),)), artifact)
    return artifact


KINDS: dict[str, tuple[Fitter, bool]] = {
    "identity": (partial(put, kind="identity"), False),
    "lines alone": (partial(put, kind="affine"), False),
    "lines alone, in sequence": (in_sequence, False),
    "identity, then refit": (partial(put, kind="identity"), True),
    "affine": (partial(put, kind="affine"), True),
}
"""What stands for the rectifier, and whether the layers behind it are refitted; "affine" is what --linearize affine does."""


def linearized(bench: Bench, sites: list[str], label: str) -> tuple[Artifact, float]:
    """The dense net with lines at some sites, and the seconds that it took."""
    fit, refit = KINDS[label]
    start = time.perf_counter()
    straight = fit(bench, sites)
    if refit:
        straight = calibration.refitted(straight, bench.context(0, IMAGES))
    return straight, time.perf_counter() - start


def ranked(bench: Bench) -> dict[str, float]:
    """State entropy of every rectifier, lowest first."""
    found = calibration.statistics(bench.dense, bench.context(0, IMAGES), (), states=True)
    return dict(sorted(((path, found.bits(path)) for path in found.states), key=lambda pair: pair[1]))


def ratio(bench: Bench, rounds: int) -> dict[str, Any]:
    """Interleaved seconds of the entropy pass and of a plain forward pass, after one of each to warm up."""
    batches = [b.inputs for b in bench.data.train.batches(125, limit=500)]

    def plain() -> None:
        with torch.no_grad():
            for inputs in batches:
                bench.dense.module(*inputs)

    def counted() -> Statistics:
        return collect(bench.dense.module, lambda: batches, [], images=500, device=torch.device("cpu"), task="classification")

    seconds: dict[str, list[float]] = {"forward": [], "pass": []}
    for turn in range(rounds + 1):
        for name, call in (("forward", plain), ("pass", counted)):
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    ratios = [a / b for a, b in zip(seconds["pass"], seconds["forward"], strict=True)]
    return {"ratio": numbers.median(ratios), "ratios": ratios, **{f"{k}_seconds": numbers.median(v) for k, v in seconds.items()}}


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Drop in points by net, number of rectifiers and what stands for them; `share` is affine's drop by identity's."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for row in rows:
        found.setdefault(row["net"], {}).setdefault(str(row["rectifiers"]), {})[row["kind"]] = row["drop_points"]
    for by_count in found.values():
        for drops in by_count.values():
            if {"affine", "identity"} <= set(drops):
                drops["share"] = drops["affine"] / drops["identity"]
    return found


def run(net: str, data: Data, nets: Path, known: dict[str, Any], rounds: int) -> None:
    """All rows of one net, into `known`."""
    bench = Bench(open_dense(nets, net), data, [])
    entropy = ranked(bench)
    about = known.setdefault("nets", {}).setdefault(net, {})
    if "entropy_pass" not in about:
        about |= {"network": NETS[net], "dense_top1": bench.dense_top1, "entropy": entropy, "entropy_pass": ratio(bench, rounds)}
        print(f"{net}: entropy pass {about['entropy_pass']['ratio']:.3f} of a forward pass", flush=True)
    rows: list[dict[str, Any]] = known.setdefault("rows", [])
    for count in COUNTS:
        for label in KINDS:
            if any((row["net"], row["rectifiers"], row["kind"]) == (net, count, label) for row in rows):
                continue
            done, seconds = linearized(bench, list(entropy)[:count], label)
            top1 = bench.top1(done)
            drop = 100 * (about["dense_top1"] - top1)
            row = {"net": net, "rectifiers": count, "kind": label, "top1": top1, "drop_points": drop, "seconds": seconds}
            rows.append(row)
            print(f"{net} {count} {label:25} top-1 {top1:.4f} drop {drop:.2f} {seconds:.0f} s", flush=True)
            write("linearize", {**known, "summary": summary(rows)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="unpacked cifar10 folder: train/CLASS/*.jpg, test/CLASS/*.jpg")
    parser.add_argument("--nets", required=True, type=Path, help="folder of nets.py, resnet20.pt and vgg16_bn.pt")
    parser.add_argument("--only", choices=list(NETS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = from_arrays(dict(decoded(args.data)), normalize="cifar10", name="cifar10")
    path = RESULTS / "linearize.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    known = {key: value for key, value in known.items() if key not in ("environment", "summary")}
    known |= {"data": "CIFAR-10 (JPEG q75), 10,000 test images", "threads": args.threads, "images": IMAGES}
    for net in [args.only] if args.only else NETS:
        run(net, data, args.nets, known, args.rounds)


if __name__ == "__main__":
    main()
