"""Two processes beside one: how much faster is what they share, and do they end in the same place?

    python benchmarks/processes.py speed CIFAR10 NETS          parts of a run, in turns, one thread a process
    python benchmarks/processes.py plans CIFAR10 NETS          whole runs by 1, 2 and 3 processes: the bytes of the plan
    python benchmarks/processes.py training CIFAR10 NETS       three epochs by 1 and by 2 processes, three seeds
    python benchmarks/processes.py kills --kills 20            a process killed at random moments: does the run end, and go on?

CIFAR10 is a folder with train/ and test/, NETS one with nets.py, resnet20.pt and vgg16_bn.pt. Every part adds to the same file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from results_io import known, spread, write

from compress.artifact import Artifact, apply
from compress.commands.demo import ARCH, make_demo
from compress.edits import Keep, Plan
from compress.pipeline import crew
from compress.pipeline.answers import counted
from compress.pipeline.given import NOTHING
from compress.progress import silent
from compress.ranks.team import ONE, Team
from compress.recipe import Recipe, make
from compress.refit import refit
from compress.selection.budget import removable
from compress.stage import Context
from compress.stages.finetune import Finetune

ROUNDS = 3
SEEDS = 3
PATIENCE_S = 60
"""A run that has lost a process ends within that time."""


def recipe(data: Path, nets: Path, net: str = "resnet20", **more: Any) -> Recipe:
    """Of a run on CIFAR-10; a data.toml with its normalization is written beside the results of this script."""
    toml = Path(tempfile.gettempdir()) / "compress-processes.toml"
    norm = "mean = [0.4914, 0.4822, 0.4465]\nstd = [0.2470, 0.2435, 0.2616]\n"
    toml.write_text(f'source = "{data}"\n{norm}[augment]\nflip = true\nshift = 4\n')
    return make(model=str(nets / f"{net}.pt"), arch=f"{nets / 'nets.py'}:{net}", data=str(toml), **more)


def halved(dense: Artifact) -> Artifact:
    """The dense net with half of every group's channels."""
    groups = removable(dense.module, dense.channels)
    return apply(Plan(tuple(Keep(g.name, g.channels, tuple(range(0, g.channels, 2))) for g in groups)), dense)


def watched(context: Context) -> object:
    """The statistics of every layer."""
    groups = removable(context.dense.module, context.dense.channels)
    return refit.statistics(context.dense, context, groups, states=True)


def parts(metric: Any, small: Artifact) -> dict[str, Callable[[Context], object]]:
    """What is shared."""

    def quality(context: Context) -> object:
        return context.team.call(counted, (context.dense.module, context.data.test, metric, context.device, context.dense.module))

    return {
        "statistics": watched,
        "reconstruction": lambda context: refit.refitted(small, context),
        "quality": quality,
        "fine-tuning": lambda context: Finetune()(small, context),
    }


def lead(team: Team, told: Recipe) -> dict[str, Any]:
    """Every part by one process and by both, in turns."""
    context, metric = crew.opened_by_all(team, told, silent, NOTHING, refusing=False)
    torch.set_num_threads(1)
    rows = []
    for name, part in parts(metric, halved(context.dense)).items():
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for _ in range(ROUNDS):
            for who in (ONE, team):
                start = time.perf_counter()
                part(replace(context, team=who))
                seconds[who.ranks.count].append(time.perf_counter() - start)
        ratios = [one / both for one, both in zip(seconds[1], seconds[2], strict=True)]
        row = {"part": name, "one_s": statistics.median(seconds[1]), "two_s": statistics.median(seconds[2])}
        rows.append({**row, "ratio": statistics.median(ratios), "least": min(ratios), "most": max(ratios)})
        print(rows[-1], flush=True)
    return {"speed": rows}


@contextmanager
def started(told: Recipe, count: int) -> Iterator[Team]:
    """Processes of this script, of which this is the first."""
    with crew.begun(count, told, NOTHING) as team:
        team.introduce({"team": team})
        yield team
        team.end(None, None)


def speed(data: Path, nets: Path) -> dict[str, Any]:
    """Parts of a run by one process and by two."""
    told = recipe(data, nets, epochs=0.1, batch_size=128, calibration=5000)
    with started(told, 2) as team:
        return lead(team, told)


def compressed(words: list[str], **how: Any) -> subprocess.CompletedProcess[str]:
    """A command, in a process of its own."""
    return subprocess.run([sys.executable, "-m", "compress", *words], capture_output=True, text=True, **how)


def words_of(told: Recipe, out: Path, *more: str) -> list[str]:
    """The command line of a recipe for CIFAR-10."""
    files = [told.model, "--arch", str(told.arch), "--data", told.data, "--out", str(out), "--force", "--quiet"]
    return ["run", *files, "--target", "macs=0.5", "--export", "", "--align", "1", "--depth", "0", "--rounds", "5", *more]


def plans(data: Path, nets: Path) -> dict[str, Any]:
    """The bytes of the plans of whole runs."""
    rows = []
    for net in ("resnet20", "vgg16_bn"):
        for count in (1, 2, 3):
            with tempfile.TemporaryDirectory() as folder:
                out, start = Path(folder) / "out", time.perf_counter()
                done = compressed(words_of(recipe(data, nets, net), out, "--epochs", "0", "--nproc", str(count)))
                assert done.returncode == 0, done.stderr
                digest = sha256((out / "plan.json").read_bytes()).hexdigest()[:16]
            rows.append({"net": net, "processes": count, "plan": digest, "seconds": time.perf_counter() - start})
            print(rows[-1], flush=True)
    return {"plans": rows}


def training(data: Path, nets: Path) -> dict[str, Any]:
    """Quality after three epochs; batches are as large with two processes as with one."""
    rows = known("processes").get("training", [])
    for seed in range(SEEDS):
        for count in (1, 2):
            if any(row["seed"] == seed and row["processes"] == count for row in rows):
                continue
            with tempfile.TemporaryDirectory() as folder:
                out, start = Path(folder) / "out", time.perf_counter()
                more = ("--epochs", "3", "--seed", str(seed), "--nproc", str(count), "--threads", "1")
                done = compressed(words_of(recipe(data, nets), out, *more), env={**os.environ, "OMP_NUM_THREADS": "1"})
                assert done.returncode == 0, done.stderr
                report = json.loads((out / "report.json").read_text())
            stage = next(row for row in report["stages"] if row["stage"] == "finetune")
            rows.append(
                {"seed": seed, "processes": count, "top1": stage["quality"]["value"], "seconds": time.perf_counter() - start}
            )
            print(rows[-1], flush=True)
            write("processes", known("processes") | {"training": rows})
    each = {str(count): spread([row["top1"] for row in rows if row["processes"] == count]) for count in (1, 2)}
    return {"training": rows, "trained": each}


def kills(count: int) -> dict[str, Any]:
    """A small net on digits; one of two processes is killed, at a moment within the run or its beginning."""
    drawn, rows = random.Random(0), list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_demo(folder, epochs=4)
        how = "--target params=0.4 --align 1 --epochs 1 --depth 0 --rounds 5 --threads 1 --nproc 2 --quiet"
        words = ["run", str(folder / "model.pt"), "--arch", ARCH, "--data", "digits", "--export", "", *how.split()]
        start = time.perf_counter()
        done = compressed([*words, "--out", str(folder / "whole")])
        assert done.returncode == 0, done.stderr
        whole, expected = time.perf_counter() - start, (folder / "whole" / "plan.json").read_bytes()
        for number in range(count):
            out, moment = folder / f"out{number}", drawn.uniform(2, whole)
            whole_line = [sys.executable, "-m", "compress", *words, "--out", str(out)]
            running = subprocess.Popen(whole_line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            time.sleep(moment)
            victims = children(running.pid)
            victim = drawn.choice(victims) if victims else running.pid
            os.kill(victim, signal.SIGKILL)
            began = time.perf_counter()
            try:
                told, hung = running.communicate(timeout=PATIENCE_S)[1], False
            except subprocess.TimeoutExpired:
                running.kill()
                told, hung = running.communicate()[1], True
            ended = time.perf_counter() - began
            begun = (out / "stages").exists()
            done = compressed([*words, "--out", str(out), "--resume" if begun else "--force"])
            same = done.returncode == 0 and (out / "plan.json").read_bytes() == expected
            rows.append(
                {"moment_s": moment, "first": victim == running.pid, "code": running.returncode, "ended_s": ended, "hung": hung,
                 "traceback": "Traceback" in told, "same_plan": same}
            )  # fmt: skip
            print(rows[-1], flush=True)
    bad = [row for row in rows if row["hung"] or row["traceback"] or not row["same_plan"]]
    return {"kills": rows, "killed": {"kills": len(rows), "bad": len(bad), "longest_s": max(row["ended_s"] for row in rows)}}


def children(pid: int) -> list[int]:
    """Processes of a run beside its first one."""
    found = subprocess.run(["pgrep", "-P", str(pid), "-f", "follow_stdin"], capture_output=True, text=True).stdout
    return [int(line) for line in found.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("speed", "plans", "training", "kills"))
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("nets", type=Path, nargs="?")
    parser.add_argument("--kills", type=int, default=20)
    given = parser.parse_args()
    made = {"speed": speed, "plans": plans, "training": training}
    found = kills(given.kills) if given.part == "kills" else made[given.part](given.data, given.nets)
    write("processes", known("processes") | found)


if __name__ == "__main__":
    main()
