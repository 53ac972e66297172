"""Does `--max-drop` without a target find as small a model as ten targets tried by hand, and is the contract kept on test data?

    python benchmarks/contracts.py --data cifar10 --mnist mnist.npz --nets nets --work work [--core 1] [--only resnet20]

Ten pairs of a network and a contract: four networks, drops of 0.2 to 2 points, four things to make small. For each

    found    one run with --max-drop and --minimize: what is lost on the test images, what is left, processor seconds
    one run  the same settings at the target that was found, alone
    by hand  ten targets, each an ordinary run; the best is the smallest that loses no more on the *test* images than is allowed,
             which nobody could have chosen without looking at them

Seconds are the processor's, so that other work beside this does not count. Finished pairs are not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from latency_targets import ready, some
from mnist import lenet5
from opened import decoded
from results_io import known, write

from compress.commands import demo
from compress.data import open_data
from compress.errors import GateFailed, Infeasible
from compress.measure.points import drop
from compress.pipeline.contract import UNITS
from compress.pipeline.prepare import prepare
from compress.pipeline.run import run
from compress.pipeline.shared import Shared
from compress.recipe import Recipe, make
from compress.report.records import Report
from compress.training import train

PAIRS = (
    ("digits", 2.0, "macs"),
    ("digits", 1.0, "params"),
    ("lenet5", 0.2, "params"),
    ("lenet5", 0.5, "macs"),
    ("lenet5", 1.0, "latency"),
    ("resnet20", 0.5, "latency"),
    ("resnet20", 1.0, "params"),
    ("resnet20", 2.0, "macs"),
    ("vgg16_bn", 0.2, "size"),
    ("vgg16_bn", 1.0, "latency"),
)
TRAIN, TEST = 20_000, 10_000
GRID = (0.9, 0.8, 0.7, 0.6, 0.5, 0.42, 0.34, 0.27, 0.2, 0.13)
NOTHING = dict.fromkeys(("lost", "left", "best_by_hand", "times_one_run", "refused"))
"""Figures that every row has a place for."""
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {"epochs": 2},
    "lenet5": {"epochs": 1},
    "resnet20": {"epochs": 0, "calibration": 1000},
    "vgg16_bn": {"epochs": 0, "calibration": 500},
}


def main() -> None:
    parser = flags(__doc__, SETTINGS)
    parser.add_argument("--minimize", nargs="+", default=["latency", "macs", "params", "size"])
    args = ready(parser)
    for net, allowed, minimize in PAIRS:
        rows = list(known("contracts").get("rows", []))
        wanted = net in args.only and minimize in args.minimize
        if wanted and not any((r["net"], r["allowed"], r["minimize"]) == (net, allowed, minimize) for r in rows):
            row = {"net": net, "allowed": allowed, "minimize": minimize, **NOTHING, **pair(net, allowed, minimize, args)}
            print(row, flush=True)
            rows = [*known("contracts").get("rows", []), row]
            write("contracts", {"summary": summary(rows), "rows": rows})


def flags(description: str | None, nets: Iterable[str]) -> argparse.ArgumentParser:
    """The flags of a script that makes models of some networks smaller."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as folders of images")
    parser.add_argument("--mnist", type=Path, required=True, help="mnist.npz")
    parser.add_argument("--nets", type=Path, required=True, help="folder of nets.py and trained weights")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made on the way")
    parser.add_argument("--core", type=int, help="core that everything is pinned to")
    parser.add_argument("--only", nargs="+", default=list(nets), metavar="NET")
    return parser


def pair(net: str, allowed: float, minimize: str, args: argparse.Namespace) -> dict[str, Any]:
    """One contract, and ten targets by hand."""
    made: dict[str, Any] = {
        **model(net, args),
        **SETTINGS[net],
        **{"max_drop": allowed, "minimize": minimize, "threads": 1, "device": "cpu", "export": "onnx", "depth": 0},
    }
    before = processor()
    try:
        report = carried_out(make(**made), args.work / "found")
    except Infeasible as error:
        return {"refused": str(error), "by_hand": by_hand(make(**made), args)}
    seconds = processor() - before
    before = processor()
    carried_out(make(**made, target=report.target), args.work / "alone")
    alone = processor() - before
    hand = by_hand(make(**made), args)
    best = min((row["left"] for row in hand if round(row["lost"], 6) <= allowed), default=None)
    left, (lost, ci95) = share(report, minimize), points(report)
    return {
        "target": report.target,
        "lost": lost,
        "lost_ci95": ci95,
        "kept": round(lost, 6) <= allowed,  # a difference of two shares has an error of its own
        "outcome": report.outcome.value,
        "undecided": report.undecided,
        "left": left,
        "best_by_hand": best,
        "beside_best": None if best is None else left / best,
        "seconds": seconds,
        "one_run_seconds": alone,
        "times_one_run": seconds / alone,
        "by_hand": hand,
    }


def carried_out(recipe: Recipe, out: Path, shared: Shared | None = None) -> Report:
    """A run; one whose contract is broken has a report all the same."""
    try:
        return run(recipe, out, force=True, shared=shared)
    except GateFailed as error:
        assert isinstance(error.report, Report), error
        return error.report


def by_hand(recipe: Recipe, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Ten targets; what is known of the dense model is found out once."""
    shared, rows = Shared(*prepare(recipe)), list[dict[str, Any]]()
    for target in GRID:
        with contextlib.suppress(Infeasible):  # below what the groups allow
            asked = recipe.model_copy(update={"target": f"{UNITS[recipe.minimize]}={target}"})
            report = carried_out(asked, args.work / "by-hand", shared)
            rows.append({"target": target, "lost": points(report)[0], "left": share(report, recipe.minimize)})
    return rows


def points(report: Report) -> tuple[float, tuple[float, float] | None]:
    """Points of test quality lost, and the 95 % interval of that."""
    dense, result = report.dense.quality, report.result.quality
    assert dense is not None and result is not None
    return drop(dense, result), result.drop_ci95


def share(report: Report, minimize: str) -> float:
    """What the result has left of what was to be made small."""
    dense, result = report.dense, report.result
    if minimize == "latency":
        assert result.latency is not None
        return 1 / result.latency.ratio
    field = {"macs": "macs", "params": "params", "size": "file_bytes"}[minimize]
    return getattr(result, field) / getattr(dense, field)


def model(net: str, args: argparse.Namespace) -> dict[str, Any]:
    """Settings that name the network and its data; what has to be trained is trained once."""
    path, here = args.work / f"{net}.pt", Path(__file__).parent
    match net:
        case "digits":
            if not path.exists():
                demo.make_demo(args.work / "demo")
                (args.work / "demo" / "model.pt").rename(path)
            return {"model": str(path), "arch": demo.ARCH, "data": "digits"}
        case "lenet5":
            data = images(args.work / "mnist.npz", lambda: dict(np.load(args.mnist)))
            if not path.exists():
                torch.manual_seed(0)
                settings = make(epochs=12, lr=2e-3, device="cpu")
                torch.save(train(lenet5(), open_data(data), settings).module.state_dict(), path)
            return {"model": str(path), "arch": f"{here / 'mnist.py'}:lenet5", "data": data}
        case _:
            data = images(args.work / "cifar10.npz", lambda: dict(decoded(args.data)), "cifar10")
            factory = f"{args.nets / 'nets.py'}:{net}"
            return {"model": str(args.nets / f"{net}.pt"), "arch": factory, "input_shape": ("3x32x32",), "data": data}


def images(path: Path, arrays: Any, normalize: str = "none") -> str:
    """A description of as many images as the figures need, made once."""
    if not path.exists():
        np.savez(path, **some(arrays(), TRAIN, TEST))
    described = path.with_suffix(".toml")
    described.write_text(f'source = "{path.name}"\nnormalize = "{normalize}"\n')
    return str(described)


def processor() -> float:
    """Seconds of all cores that this process and its children took so far."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many were kept or refused, were as small as the best by hand, and took no more than three runs."""
    found = [row for row in rows if row["refused"] is None]
    return {
        "pairs": len(rows),
        "refused": len(rows) - len(found),
        "kept": sum(row["kept"] for row in found),
        "as_small": sum(row["best_by_hand"] is None or row["beside_best"] <= 1.0 for row in found),
        "in_three_runs": sum(row["times_one_run"] <= 3 for row in found),
    }


if __name__ == "__main__":
    main()
