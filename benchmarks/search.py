"""Reinforcement learning for channel counts on CIFAR-10 (JPEG q75), beside what costs a thousandth of it.

    python benchmarks/search.py --data cifar10 --nets nets --work searches
    python benchmarks/search.py --data cifar10 --nets nets --work searches --net vgg16_bn --targets macs=0.2

rivals        a search by spatial entropy, one by accuracy, drawn choices by accuracy (as many), one-shot allocation by loss, and
              equal shares. Each only says how many channels every group keeps: which ones, the refit and the training are the
              same for all
dense         the dense net with the same training, as a control
proxy         rank correlation of spatial entropy and accuracy over drawn choices: is little entropy a sign of a good choice?
cost          processor seconds of the spatial entropy of all layers / of a forward pass, in turns; seconds of an episode

Finished rows are written at once; rows that the result file has are not run again, and a search that was cut off goes on. The
cost is measured in every run, and all of its measurements are kept.
"""

from __future__ import annotations

import argparse
import json
import statistics as numbers
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from opened import decoded, open_dense
from results_io import RESULTS, spread, write

from compress.artifact import Artifact
from compress.data import Data, from_arrays
from compress.entropy.spatial import DEFINITIONS, spatial
from compress.measure import quality
from compress.measure.cost import cost
from compress.recipe import make
from compress.search import agents, episodes
from compress.search.gym_environment import Pruning
from compress.search.task import choice, task
from compress.stage import Context
from compress.stages.finetune import Finetune
from compress.stages.remove import Remove
from compress.statistics.spatial_maps import maps

TARGETS = ("macs=0.5", "macs=0.2")
SEARCHED = {"entropy reward": ("entropy", True), "accuracy reward": ("accuracy", True), "random search": ("accuracy", False)}
ONE_SHOT, EQUAL, DENSE = "one-shot allocation", "equal shares", "dense, same training"
NETS = {
    "resnet20": ("search", "ResNet-20, 272,474 parameters, all twelve groups of channels"),
    "vgg16_bn": ("search_vgg16", "VGG-16-BN, 14,728,266 parameters, all thirteen groups of channels"),
}
"""Name of the result file, and what the net is."""


@dataclass(frozen=True)
class Bench:
    """The dense net, the data, what was asked for, and where results go."""

    dense: Artifact
    data: Data
    args: argparse.Namespace
    results: dict[str, Any]

    @property
    def common(self) -> dict[str, Any]:
        return {"device": "cpu", "episodes": self.args.episodes, "align": 1}

    def context(self, seed: int, scratch: Path | None = None, **settings: Any) -> Context:
        recipe = make(seed=seed, epochs=self.args.epochs, distill=self.args.distill, **self.common, **settings)
        return Context(self.dense, self.data, recipe, torch.device("cpu"), scratch=scratch)

    def top1(self, artifact: Artifact) -> float:
        metric, _ = quality.choose("top1", "classification", True)
        return quality.evaluate(artifact.module, self.data.test.batches(500), metric).value

    def has(self, rival: str, target: str, seed: int) -> bool:
        return any((row["rival"], row["target"], row["seed"]) == (rival, target, seed) for row in self.results["rows"])

    def add(self, rival: str, seed: int, smaller: Artifact, context: Context, seconds: float, **more: Any) -> None:
        """A row: quality before and after the training."""
        target = "-" if rival == DENSE else str(context.recipe.target)
        whole, before, start = cost(self.dense.module, self.dense.inputs), self.top1(smaller), time.perf_counter()
        tuned = Finetune()(smaller, context) if context.recipe.epochs else smaller
        trained, value, now = time.perf_counter() - start, self.top1(tuned), cost(tuned.module, tuned.inputs)
        dense = self.results.setdefault("dense_top1", self.top1(self.dense))
        row = {
            "rival": rival,
            "target": target,
            "seed": seed,
            "top1_before": before,
            "top1": value,
            "drop_before": 100 * (dense - before),
            "drop": 100 * (dense - value),
            "macs_share": now.macs / whole.macs,
            "params_share": now.params / whole.params,
            "seconds": seconds,
            "training_seconds": trained,
            "channels": {edit.layer: len(getattr(edit, "keep", ())) for edit in smaller.plan.edits},
            **more,
        }
        self.results["rows"].append(row)
        print(f"{target} seed {seed} {rival:22} {before:.4f} -> {value:.4f} in {seconds:.0f} s", flush=True)
        self.write()

    def write(self) -> None:
        rows = self.results["rows"]
        summary = {
            f"{rival}, {target}": {
                "rival": rival,
                "target": target,
                **{key: spread([r[key] for r in same]) for key in ("drop_before", "drop", "macs_share", "seconds")},
            }
            for target in (*TARGETS, "-")
            for rival in (*SEARCHED, ONE_SHOT, EQUAL, DENSE)
            if (same := [r for r in rows if (r["rival"], r["target"]) == (rival, target)])
        }
        about = {
            "network": NETS[self.args.net][1],
            "data": "CIFAR-10 (JPEG q75), 10,000 test images",
            "threads": self.args.threads,
            "episodes": self.args.episodes,
            "epochs": self.args.epochs,
            "distill": self.args.distill,
        }
        write(NETS[self.args.net][0], {**about, **self.results, "summary": summary})


def searched_row(bench: Bench, rival: str, target: str, seed: int) -> None:
    """A search, or as much of it as is missing, and its best choice carried out as the method does it."""
    reward, learns = SEARCHED[rival]
    scratch = bench.args.work / f"{bench.args.net}-{rival}-{target}-{seed}-{bench.args.episodes}".replace(" ", "-")
    context = bench.context(seed, scratch, method="rl-entropy", target=target, reward=reward)
    start = time.perf_counter()
    made = task(bench.dense, context)
    prepared = time.perf_counter() - start
    environment = Pruning(made)
    with agents.own_randomness():
        agent = agents.Ddpg(environment, len(made.widths.groups), bench.args.episodes, seed) if learns else agents.Uniform(seed)
        done, seconds = timed(environment, agent, bench.args.episodes, scratch)
    best = done[episodes.best(done)]
    counts = choice(bench.dense, context).replay(best.shares)
    start = time.perf_counter()
    smaller = Remove("entropic", counts=counts)(bench.dense, context)
    found = {"reward": best.reward, "quality_in_search": best.quality, "entropy": best.entropy}
    total = prepared + sum(seconds) + time.perf_counter() - start
    bench.add(rival, seed, smaller, context, total, episode_seconds=numbers.median(seconds), **found)


def timed(environment: Pruning, agent: agents.Agent, count: int, scratch: Path) -> tuple[list[episodes.Episode], list[float]]:
    """A search and the seconds of each of its episodes, which are kept beside it."""
    file = scratch / "seconds.json"
    known: list[float] = json.loads(file.read_text()) if file.exists() else []
    last = time.perf_counter()

    def note(number: int, episode: episodes.Episode) -> None:
        nonlocal last
        now = time.perf_counter()
        if number > len(known):
            known.append(now - last)
            file.write_text(json.dumps(known))
        last = now
        if number % 50 == 0:
            print(f"  {scratch.name} {number}: {episode.reward:.4f} {episode.quality:.3f}", flush=True)

    return episodes.search(environment, agent, count, scratch, note), known


def one_shot_rows(bench: Bench, target: str, seed: int) -> None:
    """Allocation by loss, and the same share of every group."""
    context = bench.context(seed, target=target)
    for rival, stage in ((ONE_SHOT, Remove("entropic")), (EQUAL, Remove("entropic", share_alike=True))):
        if rival in bench.args.rivals and not bench.has(rival, target, seed):
            start = time.perf_counter()
            smaller = stage(bench.dense, context)
            bench.add(rival, seed, smaller, context, time.perf_counter() - start)


def proxy(bench: Bench, target: str) -> dict[str, Any]:
    """Drawn choices: spatial entropy, by both definitions, against accuracy on the images of the search."""
    found: dict[str, Any] = {"target": target, "choices": bench.args.drawn}
    for definition in DEFINITIONS:
        context = bench.context(0, target=target, method="rl-entropy", reward="entropy", spatial=definition)
        environment = Pruning(task(bench.dense, context))
        done = episodes.search(environment, agents.Uniform(0), bench.args.drawn)
        both = ([e.entropy for e in done], [e.quality for e in done])
        ranks = [np.array(values, dtype=float).argsort().argsort() for values in both]
        found[definition] = float(np.corrcoef(ranks[0], ranks[1])[0, 1])
    print(found, flush=True)
    return found


def cost_of_entropy(bench: Bench, rounds: int) -> dict[str, Any]:
    """Processor seconds of the entropy of all maps and of a forward pass over the same 64 images, in turns; medians."""
    module, places = bench.dense.module, maps(bench.dense.module)
    inputs = [batch.inputs for batch in bench.data.train.batches(32, limit=64)]
    kept: list[torch.Tensor] = []

    class Keeping(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> Any:
            value = super().run_node(n)
            if n.name in places:
                kept.append(value.clone())
            return value

    def forward() -> None:
        for batch in inputs:
            module(*batch)

    with torch.no_grad():
        for batch in inputs:
            Keeping(module).run(*batch)
        calls: dict[str, Callable[[], None]] = {"forward": forward}
        calls |= {name: entropy_of(kept, name) for name in DEFINITIONS}
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(rounds + 1):
            for name, call in calls.items():
                start = time.process_time()
                call()
                if turn:
                    seconds[name].append(time.process_time() - start)
    ratios = {name: numbers.median(a / b for a, b in zip(seconds[name], seconds["forward"], strict=True)) for name in DEFINITIONS}
    found = {"forward_seconds": numbers.median(seconds["forward"]), **{f"{name}_ratio": r for name, r in ratios.items()}}
    print(found, flush=True)
    return found


def entropy_of(kept: list[torch.Tensor], definition: str) -> Callable[[], None]:
    def run() -> None:
        for value in kept:
            spatial(value, definition)

    return run


def cases(bench: Bench) -> Iterator[tuple[str, int]]:
    for seed in range(bench.args.seeds):
        for target in bench.args.targets:
            yield target, seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="unpacked cifar10 folder: train/CLASS/*.jpg, test/CLASS/*.jpg")
    parser.add_argument("--nets", required=True, type=Path, help="folder of nets.py and the nets")
    parser.add_argument("--net", choices=NETS, default="resnet20")
    parser.add_argument("--work", required=True, type=Path, help="folder in which searches are kept until they are finished")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--distill", type=float, default=0.7, help="weight of the dense net's answers in the training")
    parser.add_argument("--rivals", nargs="+", choices=[ONE_SHOT, EQUAL, *SEARCHED], default=[ONE_SHOT, EQUAL, *SEARCHED])
    parser.add_argument("--drawn", type=int, default=100, help="choices behind the rank correlation; 0 for none of it")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--control", action=argparse.BooleanOptionalAction, default=True, help="train the dense net, too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    data = from_arrays(dict(decoded(args.data)), normalize="cifar10", augment={"flip": True, "shift": 4}, name="cifar10")
    path = RESULTS / f"{NETS[args.net][0]}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    known: dict[str, Any] = {"proxy": [], "cost": [], "rows": []}
    known |= {key: before[key] for key in ("dense_top1", "cost", "proxy", "rows") if key in before}
    bench = Bench(open_dense(args.nets, args.net), data, args, known)
    bench.results["cost"].append(cost_of_entropy(bench, args.rounds))
    for target, seed in cases(bench):
        one_shot_rows(bench, target, seed)
        for rival in (name for name in SEARCHED if name in args.rivals):
            if not bench.has(rival, target, seed):
                searched_row(bench, rival, target, seed)
        if args.drawn and all(found["target"] != target for found in bench.results["proxy"]):
            bench.results["proxy"].append(proxy(bench, target))
            bench.write()
    for seed in range(args.seeds):
        if args.control and args.epochs and not bench.has(DENSE, "-", seed):
            context = bench.context(seed, target="macs=0.5")
            bench.add(DENSE, seed, replace(bench.dense), context, 0.0)
    bench.write()


if __name__ == "__main__":
    main()
