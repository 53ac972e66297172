"""Is what a race claims true when the machine is busy? Races of the same two networks, quiet and beside planted processes.

    python benchmarks/busy_races.py [--races 200] [--again]

The truth is the median over the races on the quiet machine that refused nothing; a race beside a load is right where its interval
holds that, or where it refuses to claim anything. Loads: processes that always compute, and ones that come and go (bursts and
pauses of 5 ms to 1 s); as many as cores, less, and more. Two pairs of networks: calls of about a millisecond, and of tens of
milliseconds; one thread, and all cores. Planted processes start before a race and end after it. Run it with nothing else on the
machine: the truth needs that.
Resumable: a race that is in the results is not run again.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from results_io import known, write
from torch import nn

from compress.graph.trace.trace import trace
from compress.measure.latency import Timing, compare
from compress.measure.runtime import runner
from exporters import onnx_for_timing
from exporters.standalone import machine

NETWORKS = {"short calls": ((24, 18), 8, 32, 40), "long calls": ((64, 48), 12, 96, 15)}
"""Widths of the two that are raced, layers, pixels, rounds."""
QUIET = 6
"""Races on the quiet machine, of every network and number of threads."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--races", type=int, default=200, help="beside loads, in all")
    parser.add_argument("--again", action="store_true", help="forget what was measured")
    given = parser.parse_args()
    cores = machine.cores()
    loads = [("always", 1), ("always", cores), ("always", 2 * cores), ("comes and goes", 1), ("comes and goes", cores + 1)]
    rows: list[dict[str, Any]] = [] if given.again else list(known("busy_races").get("races", ()))
    with tempfile.TemporaryDirectory() as folder:
        pairs = {(name, threads): pair(name, threads, Path(folder)) for name in NETWORKS for threads in (1, cores)}
        plan = [(*key, "none", 0, number) for number in range(QUIET) for key in pairs]
        each = -(-given.races // (len(loads) * len(pairs)))
        plan += [(*key, *load, number) for number, load, key in itertools.product(range(each), loads, pairs)]
        done = {(row["network"], row["threads"], row["load"], row["processes"], row["number"]) for row in rows}
        for network, threads, kind, count, number in plan[: QUIET * len(pairs) + given.races]:
            if (network, threads, kind, count, number) in done:
                continue
            with loaded(kind, count, number):
                timing = raced(pairs[network, threads], NETWORKS[network][3], threads, number)
            row = {"network": network, "threads": threads, "load": kind, "processes": count, "number": number}
            rows.append(row | told(timing))
            print(rows[-1], flush=True)
            write("busy_races", told_of_all(cores, rows))
    write("busy_races", told_of_all(cores, rows))


def pair(name: str, threads: int, folder: Path) -> dict[str, Callable[[], object]]:
    """Both networks of a kind, opened."""
    widths, layers, pixels, _ = NETWORKS[name]
    x = torch.randn(1, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    calls: dict[str, Callable[[], object]] = {}
    for width in widths:
        path = folder / f"{name} {width}.onnx"
        if not path.exists():
            onnx_for_timing.write(trace(network(width, layers), (x,)), (x,), path, 18)
        calls["wide" if width == widths[0] else "narrow"] = runner("ort", path, (x,), threads)
    return calls


def network(width: int, layers: int) -> nn.Module:
    torch.manual_seed(0)
    inner = [part for _ in range(layers) for part in (nn.Conv2d(width, width, 3, padding=1), nn.ReLU())]
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), *inner).eval()


def raced(calls: dict[str, Callable[[], object]], rounds: int, threads: int, seed: int) -> Timing:
    return compare(calls, "wide", rounds=rounds, seed=seed, waits=partial(machine.Waits, threads))["narrow"]


def told(timing: Timing) -> dict[str, Any]:
    return {
        "p50_ms": round(timing.p50_ms, 4), "ratio": round(timing.ratio, 4), "ci95": [round(end, 4) for end in timing.ci95],
        "scatter": round(timing.scatter, 3), "calm": round(timing.calm, 3), "rounds": timing.samples, "refused": timing.noisy,
    }  # fmt: skip


@contextmanager
def loaded(kind: str, count: int, seed: int) -> Iterator[None]:
    """So many processes beside, which end with the block."""
    started = [multiprocessing.Process(target=work, args=(kind, 1000 * seed + i), daemon=True) for i in range(count)]
    for process in started:
        process.start()
    time.sleep(0.3 if started else 0)  # they are computing, and not starting, when the race begins
    try:
        yield
    finally:
        for process in started:
            process.kill()
        for process in started:
            process.join()


def work(kind: str, seed: int) -> None:
    drawn, parent = random.Random(seed), os.getppid()
    spans = (0.005, 0.03, 0.2, 1.0)
    while os.getppid() == parent:
        end = time.perf_counter() + drawn.choice(spans)
        while time.perf_counter() < end:
            sum(i * i for i in range(2000))
        if kind != "always":
            time.sleep(drawn.choice(spans))


def _key(row: dict[str, Any]) -> tuple[str, int]:
    return row["network"], row["threads"]


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By network, threads and load: races whose interval holds the truth, that refused, and that were wrong."""
    quiet = [row for row in rows if row["load"] == "none" and not row["refused"]]
    truth = {k: statistics.median(row["ratio"] for row in quiet if _key(row) == k) for k in {_key(row) for row in quiet}}
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in (row for row in rows if _key(row) in truth):
        place = (*_key(row), row["load"], row["processes"])
        names = ("network", "threads", "load", "processes")
        entry = found.setdefault(
            place, dict(zip(names, place, strict=True)) | {"truth": truth[_key(row)], "holds": 0, "refused": 0, "wrong": 0}
        )
        low, high = row["ci95"]
        entry["refused" if row["refused"] else "holds" if low <= truth[_key(row)] <= high else "wrong"] += 1
    return list(found.values())


def told_of_all(cores: int, rows: list[dict[str, Any]]) -> dict[str, Any]:
    found = summary(rows)
    return {"cores": cores, "races": rows, "summary": found, "beside": beside(found)}


def beside(found: list[dict[str, Any]]) -> dict[str, int]:
    """Races beside a load, and those that were right or claimed nothing."""
    loads = [row for row in found if row["load"] != "none"]
    wrong = sum(row["wrong"] for row in loads)
    races = wrong + sum(row["holds"] + row["refused"] for row in loads)
    return {"races": races, "right": races - wrong}


if __name__ == "__main__":
    main()
