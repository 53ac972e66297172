"""Tracing and solving beside Torch-Pruning's dependency graph, over the classifiers of torchvision, in CPU seconds of one thread.

    python benchmarks/tracing_race.py              # what results/tracing_race.json lacks
    python benchmarks/tracing_race.py --again

One process. For every network and each size of its images (64 x 64, and 224 x 224, which most of them are trained with) ours
and theirs take turns, ROUNDS times, after a turn of each that does not count; the ratio is the median of the ratios of the turns.
Ours gives a graph and its solved channels, theirs the dependency graph without its groups. What theirs does not support, or takes
longer than a limit for, is no part of the count.
"""

from __future__ import annotations

import argparse
import gc
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from statistics import median
from typing import Any

import torch
import torch_pruning
import torchvision
from results_io import known, write
from torch import Tensor, nn
from zoo import build, seconds

from compress.graph.channels.solve import solve
from compress.graph.trace.trace import trace

ROUNDS = 3
RIVAL_LIMIT = 100
SIZES = (64, 224)
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", action="store_true", help="also networks that have a row")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME")
    given = parser.parse_args()
    torch.set_num_threads(1)
    every = torchvision.models.list_models(module=torchvision.models)
    rows: dict[str, Row] = {} if given.again and not given.only else known("tracing_race").get("networks", {})
    for name in given.only or [name for name in every if name not in rows]:
        rows[name] = raced(name)
        versions = {package: version(package) for package in ("torch", "torchvision", "torch-pruning")}
        ordered = {each: rows[each] for each in every if each in rows}
        settings = {"rounds": ROUNDS, "rival_limit_s": RIVAL_LIMIT}
        write("tracing_race", {"versions": versions, "settings": settings, "summary": summary(ordered), "networks": ordered})
        print(name, rows[name], flush=True)


def raced(name: str) -> Row:
    model, (small,) = build(name)
    fixed = name.startswith("vit_") or name == "maxvit_t"  # positions or windows of one size: the native one
    sizes = [small.shape[-1]] if name == "maxvit_t" else [small.shape[-1] if fixed else max(small.shape[-1], SIZES[0]), SIZES[1]]
    row: Row = {}
    for key, size in zip(("small", "native"), [sizes[0], sizes[-1]], strict=True):
        if fixed and size != small.shape[-1]:
            model = torchvision.models.get_model(name, weights=None).eval()
        try:
            row[key] = in_turns(model, torch.randn(1, 3, size, size)) | {"size": size}
        except Exception as error:
            row[key] = {"size": size, "rival_error": f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]}
    return row


def in_turns(model: nn.Module, x: Tensor) -> Row:
    traces, solves, theirs = [], [], []
    for turn in range(ROUNDS + 1):
        gc.collect()
        made: list[Any] = []
        took = seconds(lambda made=made: made.append(trace(model, (x,))))
        solved = seconds(lambda made=made: solve(made[0], (x,)))
        made.clear()
        gc.collect()
        with time_limit(RIVAL_LIMIT):
            rivals = seconds(lambda: rival(model, (x,)))
        if turn:
            traces.append(took)
            solves.append(solved)
            theirs.append(rivals)
    ratios = [(t + s) / r for t, s, r in zip(traces, solves, theirs, strict=True)]
    found = {"trace_s": median(traces), "solve_s": median(solves), "rival_s": median(theirs), "ratio": median(ratios)}
    return {key: round(value, 4) for key, value in found.items()}


def rival(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    torch_pruning.DependencyGraph().build_dependency(model, example_inputs=inputs[0], verbose=False)


@contextmanager
def time_limit(limit: int) -> Iterator[None]:
    """On CPU seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {limit} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def summary(rows: dict[str, Row]) -> list[Row]:
    return [counted(key, [(name, row[key]) for name, row in rows.items()]) for key in ("small", "native")]


def counted(key: str, rows: Iterable[tuple[str, Row]]) -> Row:
    ratios = {name: row["ratio"] for name, row in rows if "ratio" in row}
    slower = {name: ratio for name, ratio in ratios.items() if ratio > 1}
    size = {"small": "64 x 64", "native": "224 x 224"}[key]
    middle = round(median(ratios.values()), 3) if ratios else None
    worst = max(ratios.values(), default=None)
    found = {"images": size, "supported": len(ratios), "no_slower": len(ratios) - len(slower), "median": middle, "worst": worst}
    return {
        **found,
        "slower": ", ".join(f"{name} ({ratio:.2f})" for name, ratio in sorted(slower.items(), key=lambda item: -item[1])),
    }


if __name__ == "__main__":
    main()
