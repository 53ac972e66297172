"""How many rectifiers can go, after a short training: identities as in the papers, beside lines with a tenth of its steps.

    python benchmarks/rectifiers.py resnet20 --data cifar10 --nets nets
    python benchmarks/rectifiers.py vgg16_bn --data cifar10 --nets nets
    python benchmarks/rectifiers.py mobilenet --data cifar10 --work folder     # the net that mobilenet.py trains
    python benchmarks/rectifiers.py resnet18 --data cifar10 --work folder      # and swin: nets that dense_nets.py trains

The rectifiers of the lowest state entropy go, ranked once on the dense net. `identity` is then trained for some epochs; `affine`
(closest lines, the layers behind refitted) and `gentle` (those lines gradually) for a tenth of that. `cheapest first` ranks lines
as `--method depth` does, by how far each moves the outputs, and does not train at all. The row of no rectifiers is the dense net
with the same training: what training alone does. Recipes are short: the papers train for hundreds of epochs.
Finished rows are written at once; rows that the result file has are not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, Literal

import dense_nets
import torch
from linearize import ranked
from mobilenet import dense_net, net
from opened import decoded, open_dense
from resnet20 import Bench
from results_io import RESULTS, write

from compress.artifact import Artifact
from compress.data import from_arrays
from compress.graph.trace.trace import trace
from compress.refit import fit_activations
from compress.selection.depth import free
from compress.selection.output_divergence import moved
from compress.stages.finetune import Finetune

NETS: dict[str, tuple[float, tuple[int, ...]]] = {
    "resnet20": (0.5, (0, 1, 2, 3, 4, 6, 8)),
    "vgg16_bn": (0.2, (0, 1, 2, 3, 4, 6)),
    "mobilenet": (0.5, (0, 1, 2, 4, 6, 12)),
    "resnet18": (0.1, (0, 1, 2, 4, 8)),
    "swin": (0.2, (0, 1, 2, 4, 6)),
}
"""Epochs of the identities' training, and numbers of rectifiers."""
ARMS: dict[str, tuple[Literal["identity", "affine", "gradual"], float, float]] = {
    "cheapest first": ("affine", 0.0, 1e-4),
    "identity": ("identity", 1.0, 1e-3),
    "identity, small steps": ("identity", 1.0, 1e-4),
    "affine, small steps": ("affine", 0.1, 1e-4),
    "affine": ("affine", 0.1, 1e-3),
    "gentle": ("gradual", 0.1, 1e-3),
}
"""What stands for a rectifier, the share of the identities' epochs, and the peak learning rate."""
CHEAPEST = "cheapest first"
IMAGES = 1000
LIMIT = 0.4  # points


def row(bench: Bench, sites: list[str], arm: str, whole: float) -> dict[str, Any]:
    """One arm, trained and measured."""
    kind, share, lr = ARMS[arm]
    context = bench.context(0, IMAGES, epochs=share * whole, lr=lr, linearize=kind)
    start = time.perf_counter()
    done = fit_activations.linearized(bench.dense, context, sites, kind)
    if share:
        done = Finetune()(done, context)
    seconds = time.perf_counter() - start
    top1 = bench.top1(done)
    return {"top1": top1, "drop_points": 100 * (bench.dense_top1 - top1), "epochs": share * whole, "lr": lr, "seconds": seconds}


def cheapest(bench: Bench) -> list[str]:
    """Rectifiers by how far the closest line in place of one alone moves the outputs, the least first."""
    context = bench.context(0, IMAGES)
    edits = fit_activations.fitted(bench.dense, context, [one.path for one in free(bench.dense)], "affine")
    cost = moved(bench.dense, [[edit] for edit in edits], context)
    return [edit.layer for _, edit in sorted(zip(cost, edits, strict=True), key=lambda pair: pair[0])]


def within(rows: list[dict[str, Any]], nets: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Most rectifiers that each arm takes away without losing more than `LIMIT`, of the counts tried; None for arms not run."""
    found: dict[str, dict[str, Any]] = {
        net: {"rectifiers": about["rectifiers"], "epochs": 0.0, **dict.fromkeys(ARMS)} for net, about in nets.items()
    }
    for one in rows:
        arms, kept = found[one["net"]], one["rectifiers"] if one["drop_points"] <= LIMIT else 0
        arms[one["kind"]] = max(arms[one["kind"]] or 0, kept)
        arms["epochs"] = max(arms["epochs"], one["epochs"])  # identities train longest
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Points lost by net, number of rectifiers and arm; None for what was not run."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for one in sorted(rows, key=lambda r: (r["net"], r["rectifiers"])):
        arms = found.setdefault(one["net"], {}).setdefault(str(one["rectifiers"]), dict.fromkeys(ARMS))
        arms[one["kind"]] = one["drop_points"]
    for counts in found.values():
        if none := counts.get("0"):
            none |= {"gentle": none["affine"], CHEAPEST: 0.0}  # without a line: the same training, and nothing done
    return found


def opened(args: argparse.Namespace) -> Artifact:
    if args.net in ("resnet20", "vgg16_bn"):
        return open_dense(args.nets, args.net)
    if args.net == "mobilenet":
        model = net()
        model.load_state_dict(torch.load(dense_net(args.work, args.data), weights_only=True))
    else:
        model = dense_nets.trained(args.net, args.work, args.data)
    inputs = (torch.zeros(1, 3, 32, 32),)
    return Artifact(trace(model.eval(), inputs), inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=list(NETS))
    parser.add_argument("--data", required=True, type=Path, help="unpacked cifar10 folder: train/CLASS/*.jpg, test/CLASS/*.jpg")
    parser.add_argument("--nets", type=Path, help="folder of nets.py, resnet20.pt and vgg16_bn.pt")
    parser.add_argument("--work", type=Path, help="folder of the nets that are trained here")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = from_arrays(dict(decoded(args.data)), normalize="cifar10", augment={"flip": True, "shift": 4}, name="cifar10")
    bench = Bench(opened(args), data, [])
    orders = {arm: cheapest(bench) if arm == CHEAPEST else list(ranked(bench)) for arm in args.arms}
    path = RESULTS / "rectifiers.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    rows: list[dict[str, Any]] = known.get("rows", [])
    about = {**known.get("nets", {}), args.net: {"dense_top1": bench.dense_top1, "rectifiers": len(orders[args.arms[0]])}}
    epochs, counts = NETS[args.net]
    for count in counts:
        for kind in args.arms:
            known_row = any((r["net"], r["rectifiers"], r["kind"]) == (args.net, count, kind) for r in rows)
            if known_row or (count == 0 and kind in ("gentle", CHEAPEST)):
                continue
            rows.append({"net": args.net, "rectifiers": count, "kind": kind, **row(bench, orders[kind][:count], kind, epochs)})
            print(rows[-1], flush=True)
            facts = {"data": "CIFAR-10 (JPEG q75), 10,000 test images", "nets": about}
            write("rectifiers", {**facts, "summary": summary(rows), "within": within(rows, about), "rows": rows})


if __name__ == "__main__":
    main()
