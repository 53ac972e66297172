"""What it takes when the C library gives freed memory back to the system, and what it saves to keep it while stages work.

    python benchmarks/heap.py [--core 0]

ResNet-18 with random weights on random images: a forward as a pass of statistics makes it, and a step of training. Both ways in
turns in one process, seconds of the processor in user mode and in the kernel; the peak of each way in a process of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from results_io import write
from torchvision.models import resnet18

from compress.measure import heap

ROUNDS = 7
WORK = {"forward, 64 images of 224x224": (64, 224, False), "training step, 32 images of 224x224": (32, 224, True),
        "training step, 128 images of 32x32": (128, 32, True)}  # fmt: skip
WAYS = {"as usual": contextlib.nullcontext, "kept": heap.kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", type=int, help="core that everything is pinned to")
    parser.add_argument("--peak", nargs=2, metavar=("WORK", "WAY"), help="only this, and print the peak in MB")
    args = parser.parse_args()
    if args.core is not None:
        os.sched_setaffinity(0, {args.core})
    torch.set_num_threads(1)
    if args.peak:
        work = worker(args.peak[0])
        with WAYS[args.peak[1]]():
            for _ in range(3):
                work()
        print(peak_mb())
        return
    write("heap", {"rounds": ROUNDS, "rows": [row for name in WORK for row in measured(name)]})


def peak_mb() -> float:
    """Of this process; `ru_maxrss` would be the starting process's where that was larger."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def worker(name: str) -> Callable[[], None]:
    """A call that does the work of this name once."""
    count, size, train = WORK[name]
    net = resnet18(num_classes=10).train(train)
    images = torch.randn(count, 3, size, size)

    def work() -> None:
        with torch.set_grad_enabled(train):
            found = net(images).square().mean()
        if train:
            found.backward()

    return work


def measured(name: str) -> list[dict[str, Any]]:
    """A row for each way."""
    work, seconds = worker(name), dict[str, list[tuple[float, float]]]()
    work()
    for _ in range(ROUNDS):
        for way, context in WAYS.items():
            with context():
                work()  # what the first one touches, all others find
                before = resource.getrusage(resource.RUSAGE_SELF)
                work()
                after = resource.getrusage(resource.RUSAGE_SELF)
            spent = (after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime)
            seconds.setdefault(way, []).append(spent)
    usual = statistics.median(sum(both) for both in seconds["as usual"])
    rows = []
    for way, found in seconds.items():
        user, kernel = (statistics.median(one) for one in zip(*found, strict=True))
        ratio = statistics.median(map(sum, found)) / usual
        peak = float(subprocess.check_output([sys.executable, __file__, "--peak", name, way], text=True))
        rows.append({"work": name, "way": way, "user_s": user, "kernel_s": kernel, "ratio": ratio, "peak_mb": peak})
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    main()
