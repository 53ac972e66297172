"""A search of 30 trials beside ten recipes written by hand: is each of them met, and how much time does it take?

    python benchmarks/tune_front.py --net digits --work build/tune
    python benchmarks/tune_front.py --net resnet20 --work build/tune --data cifar10 --nets nets

Both start from nothing, the search by `compress.tune` and each recipe by `compress.run`. Points are those on held-out images, by
which the search chooses; a recipe is met where a trial loses and leaves no more, and beaten where it is less of one of them.
Seconds are those of a clock, and of the processor: other work on the machine makes the first ones longer, and not the second.
Finished recipes are not run again, and a search that was cut off goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from opened import decoded
from results_io import known, write

import compress
from compress.commands.demo import ARCH, make_demo
from compress.errors import Infeasible
from compress.pipeline.answers import answers
from compress.pipeline.held_out import HeldOut
from compress.pipeline.prepare import prepare
from compress.progress import silent
from compress.recipe import make

HAND = [(method, f"macs={share}") for share in (0.7, 0.5, 0.35, 0.25, 0.15) for method in ("entropic", "magnitude")]
TRIALS = 30
SETTINGS: dict[str, dict[str, Any]] = {"digits": {"epochs": 2.0}, "resnet20": {"epochs": 0.25, "depth": 0}}
IMAGES = {"train": 10_000, "test": 2_000}
"""Of CIFAR-10, drawn once: a run is to take a minute."""


def settings(net: str, work: Path, images: Path | None, nets: Path | None) -> dict[str, Any]:
    """What all recipes and the search have in common; files are made where they are missing."""
    work.mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {"minimize": "macs", "device": "cpu", **SETTINGS[net]}
    if net == "digits":
        if not (work / "model.pt").exists():
            make_demo(work)
        return common | {"model": str(work / "model.pt"), "arch": ARCH, "data": "digits"}
    assert images is not None and nets is not None, "needed are --data and --nets"
    if not (work / "cifar10.npz").exists():
        np.savez(work / "cifar10.npz", **part(dict(decoded(images))))
    (work / "data.toml").write_text('source = "cifar10.npz"\nnormalize = "cifar10"\n[augment]\nflip = true\nshift = 4\n')
    arch = f"{nets.resolve() / 'nets.py'}:resnet20"
    return common | {"model": str(nets / "resnet20.pt"), "arch": arch, "data": str(work / "data.toml")}


def part(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Some of the images, in any order."""
    draw = np.random.default_rng(0)
    chosen = {name: draw.permutation(len(arrays[f"y_{name}"]))[:count] for name, count in IMAGES.items()}
    return {key: values[chosen[key.partition("_")[2]]] for key, values in arrays.items()}


def timed(do: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What it gives, and the seconds it took."""
    start, busy = time.perf_counter(), sum(os.times()[:4])
    found = do()
    return found, {"seconds": round(time.perf_counter() - start, 1), "cpu_s": round(sum(os.times()[:4]) - busy, 1)}


def by_hand(common: dict[str, Any], work: Path, rows: list[dict[str, Any]], told: Callable[[], None]) -> None:
    """Every recipe that has no row yet."""
    context, metric = prepare(make(**common), silent, refusing=True)
    held_out = HeldOut(context, metric)
    for method, target in HAND:
        if any((row["method"], row["target"]) == (method, target) for row in rows):
            continue
        out = work / f"{method}-{target}"
        report, took = timed(lambda: compress.run(**common, method=method, target=target, out=out, force=True))  # noqa: B023
        lost = held_out.lost(answers("onnx", out / "model.onnx")).points
        left = report.result.macs / report.dense.macs
        rows.append({"method": method, "target": target, "lost": lost, "left": left, **took})
        told()
        print(f"{method:10} {target:10} {lost:6.2f} points at {left:.1%}, {took['seconds']:.0f} s", flush=True)


def searched(common: dict[str, Any], work: Path, found: dict[str, Any], told: Callable[[], None]) -> None:
    """The search; one that was cut off is gone on with, and its seconds are added up."""
    out, spent = work / "search", found.setdefault("search_took", [])
    again = (out / "study.db").exists() and bool(spent)
    spent.append({"seconds": 0.0, "cpu_s": 0.0})
    told()
    start = time.perf_counter(), sum(os.times()[:4])

    def shown(*_: object) -> None:
        now = {"seconds": time.perf_counter() - start[0], "cpu_s": sum(os.times()[:4]) - start[1]}
        if now["seconds"] > spent[-1]["seconds"] + 5:
            spent[-1] = {key: round(value, 1) for key, value in now.items()}
            told()

    try:
        compress.tune(out=out, progress=shown, **({"join": True} if again else {**common, "trials": TRIALS, "force": True}))
    except Infeasible as error:  # none keeps the limit: the table is there all the same
        print(error)
    spent[-1] = {"seconds": round(time.perf_counter() - start[0], 1), "cpu_s": round(sum(os.times()[:4]) - start[1], 1)}
    kept = ("trial", "settings", "lost", "left", "seconds", "front", "reason")
    trials = json.loads((out / "tune.json").read_text())["trials"]
    found["trials"] = [{key: one[key] for key in kept} for one in trials]
    told()


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """How many recipes are met and beaten, and how much time it took."""
    done = [one for one in found["trials"] if one["lost"] is not None]
    for row in found["by_hand"]:
        no_worse = [one for one in done if one["lost"] <= row["lost"] and one["left"] <= row["left"]]
        row["met"] = bool(no_worse)
        row["beaten"] = any((one["lost"], one["left"]) != (row["lost"], row["left"]) for one in no_worse)
    took = {key: sum(part[key] for part in found["search_took"]) for key in ("seconds", "cpu_s")}
    one = {key: statistics.median(row[key] for row in found["by_hand"]) for key in took}
    return {
        "trials": len(found["trials"]),
        "carried_out": len(done),
        "by_hand": len(found["by_hand"]),
        "met": sum(row["met"] for row in found["by_hand"]),
        "beaten": sum(row["beaten"] for row in found["by_hand"]),
        "one_run_s": one["seconds"],
        "search_s": round(took["seconds"], 1),
        "times_one_run": round(took["seconds"] / one["seconds"], 1),
        "one_run_cpu_s": one["cpu_s"],
        "search_cpu_s": round(took["cpu_s"], 1),
        "times_one_run_cpu": round(took["cpu_s"] / one["cpu_s"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", required=True, choices=SETTINGS)
    parser.add_argument("--work", required=True, type=Path, help="folder of runs and of the search, to go on in")
    parser.add_argument("--data", type=Path, help="unpacked cifar10 folder: train/CLASS/*.jpg, test/CLASS/*.jpg")
    parser.add_argument("--nets", type=Path, help="folder of nets.py and resnet20.pt")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    work = args.work / args.net
    common = settings(args.net, work, args.data, args.nets) | {"threads": args.threads}
    place = work / "figures.json"
    found: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {"by_hand": []}

    def told() -> None:
        place.write_text(json.dumps(found))

    by_hand(common, work, found["by_hand"], told)
    if "trials" not in found:
        searched(common, work, found, told)
    front = [one for one in found["trials"] if one["front"]]
    made = {"settings": SETTINGS[args.net], "summary": summary(found), "by_hand": found["by_hand"], "front": front}
    others = {net: figures for net, figures in known("tune_front").items() if net in SETTINGS}
    write("tune_front", {**others, args.net: made | {"trials": found["trials"]}})
    print(json.dumps(made["summary"], indent=1))


if __name__ == "__main__":
    main()
