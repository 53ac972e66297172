"""Does the probe know before any training whether fine-tuning will recover?

    python benchmarks/probe.py lenet5 --mnist mnist.npz --work folder
    python benchmarks/probe.py resnet20 --cifar cifar10 --nets nets

Channels are removed in several ways and amounts, all layers alike or one layer made a bottleneck, without a refit. Each predictor
gives a number for each case before training: what the probe finds lost beyond the dense model, the loss on held-out data, the
share of MACs that is gone. Then the case is fine-tuned, and so is the dense net for as long. A case has recovered if it ends
within a point of that.

A predictor's threshold is the best one for the cases of the net's first seed; its hit rate is counted on those of the others,
beside that of who always gives the more frequent answer. The area under the curve needs no threshold: the chance that of two
cases, one that recovers and one that does not, the predictor ranks them rightly.

Finished rows are written at once; rows that the result file has are not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mnist import lenet5
from opened import decoded, open_dense
from resnet20 import Bench
from results_io import known, write
from torch import nn
from torch.nn import functional

from compress.artifact import Artifact, apply
from compress.commands.probe import LIMIT, excess, probe
from compress.data import Data, from_arrays, open_data
from compress.edits import Plan
from compress.graph.channels.solve import solve
from compress.graph.trace.trace import trace
from compress.measure.cost import cost
from compress.recipe import make
from compress.selection import budget
from compress.stage import Context
from compress.stages.remove import Remove
from compress.training import train

EPOCHS = {"lenet5": 3.0, "resnet20": 0.5}
IMAGES = 20_000  # of MNIST, for the fine-tuning of LeNet-5
DENSE_EPOCHS = 5  # of LeNet-5
SHARES = (0.75, 0.5, 0.35, 0.25, 0.1)
METHODS = ("obs", "magnitude", "random")
LEFT = (1, 2, 4, 8)  # channels that a bottleneck keeps
RECOVERED = 1.0  # points below the dense net after as much training
PREDICTORS = {"probe": "lost beyond the dense model", "loss": "loss before fine-tuning", "macs": "share of MACs that is gone"}


def cases(dense: Artifact, few: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names, and what `Remove` is told."""
    groups = budget.removable(dense.module, solve(dense.module, dense.inputs))
    for method in METHODS[1:] if few else METHODS:
        for share in SHARES[1:] if few else SHARES:
            yield (
                f"{method} {share:g}",
                {"selector": method, "counts": {g.name: max(1, round(share * g.channels)) for g in groups}},
            )
    for group in groups[:: 4 if few else 1]:
        for left in LEFT[:2] if few else LEFT:
            if left < group.channels:
                yield f"{left} of {group.name}", {"selector": "magnitude", "counts": {group.name: left}}


def case_row(dense: Artifact, data: Data, settings: dict[str, Any], what: dict[str, Any]) -> dict[str, Any]:
    context = Context(dense, data, make(calibration=1000, align=1, device="cpu", **settings), torch.device("cpu"))
    edits, _ = Remove(**what).decide(dense, context)
    small = apply(Plan(edits), dense)
    found = probe(context, small)
    tuned = train(small.module, data, context.recipe, teacher=dense.module)
    macs = [cost(a.module, a.inputs).macs for a in (small, dense)]
    return {
        "probe": max(map(excess, found.rows)),
        "bottleneck": found.bottleneck,
        "loss": mean_loss(small.module, data),
        "macs": 1 - macs[0] / macs[1],
        "before": top1(small.module, data),
        "after": top1(tuned.module, data),
    }


def mean_loss(module: nn.Module, data: Data) -> float:
    """Cross entropy on held-out data."""
    with torch.no_grad():
        batches = ((b.inputs, b.target) for b in data.held_out.batches(500))
        parts = [(functional.cross_entropy(module(*x), y), len(y)) for x, y in batches if y is not None]
    return sum(float(loss) * n for loss, n in parts) / sum(n for _, n in parts)


def top1(module: nn.Module, data: Data) -> float:
    bench = Bench(Artifact(module, ()), data, [])  # type: ignore[arg-type]
    return bench.top1(bench.dense)


def predictions(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How good each predictor is: threshold from the first seed, hits on the others."""
    first = min(r["seed"] for r in rows)
    chosen = [r for r in rows if r["seed"] == first]
    judged = [r for r in rows if r["seed"] != first] or chosen
    often = sum(r["recovered"] for r in judged) / len(judged)
    lines: list[dict[str, Any]] = []
    for name, what in PREDICTORS.items():
        limits = sorted({r[name] for r in chosen})
        limit = max(limits, key=lambda x: hits(chosen, name, x))
        lines.append(
            {
                "predictor": what,
                "limit": limit,
                "hits": 100 * hits(judged, name, limit),
                "area": area(judged, name),
                "cases": len(judged),
            }
        )
        if name == "probe":
            lines.append(
                {**lines[0], "predictor": f"{what}, limit as shipped", "limit": LIMIT, "hits": 100 * hits(judged, name, LIMIT)}
            )
    return [
        *lines,
        {"predictor": "always the same", "limit": None, "hits": 100 * max(often, 1 - often), "area": 0.5, "cases": len(judged)},
    ]


def hits(rows: Sequence[dict[str, Any]], name: str, limit: float) -> float:
    """Share of cases for which "recovers up to the limit" is right."""
    return sum((r[name] <= limit) == r["recovered"] for r in rows) / len(rows)


def area(rows: Sequence[dict[str, Any]], name: str) -> float | None:
    """Chance that a case that recovers ranks below one that does not; None where there is only one kind."""
    good, bad = ([r[name] for r in rows if r["recovered"] is kind] for kind in (True, False))
    if not good or not bad:
        return None
    return sum((g < b) + 0.5 * (g == b) for g in good for b in bad) / (len(good) * len(bad))


def of_lenet5(path: Path, work: Path, seed: int) -> tuple[Artifact, Data]:
    """The dense net of a seed, trained once."""
    data = open_data(str(path), seed=seed)
    file, inputs = work / f"lenet5_{seed}.pt", (torch.zeros(1, 1, 28, 28),)
    net = lenet5()
    if not file.exists():
        torch.manual_seed(seed)
        net = lenet5()
        trained = train(net, data, make(epochs=DENSE_EPOCHS, lr=3e-3, batch_size=128, distill=0.0, seed=seed)).module
        work.mkdir(parents=True, exist_ok=True)
        torch.save(trained.state_dict(), file)
    net.load_state_dict(torch.load(file, weights_only=True))
    few = dataclasses.replace(data.train, index=data.train.index[:IMAGES])
    return Artifact(trace(net.eval(), inputs), inputs), dataclasses.replace(data, train=few)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=list(EPOCHS))
    parser.add_argument("--mnist", type=Path, help="mnist.npz")
    parser.add_argument("--work", type=Path, help="where dense LeNets are kept")
    parser.add_argument("--cifar", type=Path, help="unpacked cifar10 folder: train/CLASS/*.jpg, test/CLASS/*.jpg")
    parser.add_argument("--nets", type=Path, help="folder of nets.py and resnet20.pt")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=float)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    epochs = args.epochs or EPOCHS[args.net]
    images = None
    if args.net == "resnet20":
        arrays = dict(decoded(args.cifar))
        images = from_arrays(arrays, normalize="cifar10", augment={"flip": True, "shift": 4}, name="cifar10")
    for seed in args.seeds:
        if images is None:
            dense, data = of_lenet5(args.mnist, args.work, seed)
        else:
            dense, data = open_dense(args.nets, "resnet20"), images
        settings = {"epochs": epochs, "lr": 3e-3 if images is None else 1e-3, "seed": seed}
        one_seed(args.net, dense, data, settings)


def one_seed(net: str, dense: Artifact, data: Data, settings: dict[str, Any]) -> None:
    """All cases of a seed, behind the dense net's own further training."""
    seed, epochs = settings["seed"], settings["epochs"]
    mine = known("probe").get(net, {"epochs": epochs, "recovered_within_points": RECOVERED, "dense": {}, "rows": []})
    if mine["epochs"] != epochs:
        raise SystemExit(f"probe.json has rows of {mine['epochs']} epochs; take them, or delete them.")
    if str(seed) not in mine["dense"]:
        more = train(dense.module, data, make(**settings), teacher=dense.module)
        mine["dense"][str(seed)] = {"before": top1(dense.module, data), "after": top1(more.module, data)}
    goal = mine["dense"][str(seed)]["after"] - RECOVERED / 100
    for name, what in cases(dense, few=net == "resnet20"):
        if any((r["seed"], r["case"]) == (seed, name) for r in mine["rows"]):
            continue
        row = case_row(dense, data, settings, what)
        mine["rows"].append({"seed": seed, "case": name, **row, "recovered": row["after"] >= goal})
        print(net, mine["rows"][-1], flush=True)
        mine["summary"] = predictions(mine["rows"])
        write("probe", {**known("probe"), net: mine})


if __name__ == "__main__":
    main()
