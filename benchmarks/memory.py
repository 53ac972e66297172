"""Memory and time of statistics, selection and reconstruction at 224x224, with little memory and with as much as there is.

    python benchmarks/memory.py [--nets mobilenet_v2,resnet50,vgg16_bn] [--threads 1] [--scratch DIR]

Networks of torchvision with the weights of their constructors on synthetic images. Each row is a process of its own: its peak is
that of the process (VmHWM), with Python, torch, the images (8 bits each) and the models in it. Rows with as much memory as there
is have as many images as fit then. Ratios of seconds are of two rows of the same images, by the clock and of the processor: on a
machine with other work the first says little, and the second leaves out waiting for files. A row that is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torchvision
from results_io import known, write
from torchvision.io import write_jpeg

from compress.artifact import Artifact, apply
from compress.data import Data, from_arrays, open_data
from compress.edits import Plan
from compress.graph.channels.solve import solve
from compress.graph.trace.trace import trace
from compress.recipe import make
from compress.refit import refit
from compress.selection import budget, channels
from compress.stage import Context
from compress.stages.remove import Remove

LITTLE, PLENTY = "2GB", "1000GB"
SIZE = 224
HELD_OUT = 0.1
"""Of the training images, which is the default of data."""
MOST_IN_MEMORY = 1000
"""Images; more lie in a folder, as whoever has so many has them."""
NETS = ("mobilenet_v2", "resnet50", "vgg16_bn")
ROWS = tuple((net, *row) for row in ((LITTLE, 1000), (LITTLE, 100), (PLENTY, 100), (LITTLE, 5000)) for net in NETS)
"""(network, --memory, images)"""


def peak() -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def measured(net: str, memory: str, images: int, scratch: Path) -> dict[str, Any]:
    """Seconds of the three steps, the peak after each, and what went through files."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, net)().eval()
    drawn = torch.Generator().manual_seed(0)
    in_folder = images > MOST_IN_MEMORY
    # Some are held out.
    most = math.ceil(images / (1 - HELD_OUT)) + 2
    data = folder(scratch, most, drawn) if in_folder else arrays(most, drawn)
    example = (torch.zeros(1, 3, SIZE, SIZE),)
    dense = Artifact(trace(model, example), example)
    recipe = make(model=net, data="synthetic", target="macs=0.5", align=1, epochs=0, calibration=images, memory=memory)
    told: list[str] = []
    context = Context(dense, data, recipe, torch.device("cpu"), scratch=scratch)
    context = replace(context, progress=lambda what, share, detail: told.append(detail) if what == "memory" else None)
    assert context.calibration.images == images, "as many as the row says"
    groups = list(budget.removable(dense.module, solve(dense.module, dense.inputs)))
    start = time.process_time()
    at, row = [time.perf_counter()], dict[str, Any]({"net": net, "memory": memory, "images": images, "peak_before": peak()})
    row["data"] = "folder" if in_folder else "memory"

    def step(name: str) -> None:
        at.append(time.perf_counter())
        row.update({f"{name}_seconds": round(at[-1] - at[-2], 1), f"peak_after_{name}": peak()})
        print(row, file=sys.stderr, flush=True)

    found = refit.statistics(dense, context, groups, states=True)
    step("statistics")
    edits, _ = Remove("entropic").decide(dense, context, channels.Losses(dense.module, found))
    del found
    step("selection")
    small = refit.refitted(apply(Plan(edits), dense), context)
    step("reconstruction")
    return {
        **row,
        "seconds": round(at[-1] - at[0], 1),
        "cpu_seconds": round(time.process_time() - start, 1),
        "peak_bytes": peak(),
        "said": told[-1],
        "notes": list(small.notes),
    }


def arrays(images: int, drawn: torch.Generator) -> Data:
    """Noise in memory, 8 bits each."""
    made: dict[str, Any] = {
        "x_train": torch.randint(0, 256, (images, 3, SIZE, SIZE), generator=drawn, dtype=torch.uint8),
        "y_train": torch.arange(images) % 1000,
        "x_test": torch.randint(0, 256, (2, 3, SIZE, SIZE), generator=drawn, dtype=torch.uint8),
        "y_test": torch.arange(2),
    }
    return from_arrays(made, normalize="imagenet", name="synthetic")


def folder(scratch: Path, images: int, drawn: torch.Generator) -> Data:
    """Noise as JPEG files, which are decoded in every pass and never all in memory."""
    root = scratch.with_name("memory-benchmark-images")
    for part, count in (("train", images), ("test", 2)):
        for number in range(count):
            path = root / part / f"{number % 2}" / f"{number}.jpg"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_jpeg(torch.randint(0, 256, (3, SIZE, SIZE), generator=drawn, dtype=torch.uint8), str(path), quality=75)
    described = root.with_suffix(".toml")
    described.write_text(f'source = "{root}"\nnormalize = "imagenet"\nmemory_gb = 0.001\n')
    return open_data(str(described), shape=(3, SIZE, SIZE))


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each network: the peak with little memory, and the ratio of seconds where both ways have the same images."""
    found: list[dict[str, Any]] = []
    for net in dict.fromkeys(row["net"] for row in rows):
        little = {row["images"]: row for row in rows if row["net"] == net and row["memory"] == LITTLE and "seconds" in row}
        plenty = {row["images"]: row for row in rows if row["net"] == net and row["memory"] == PLENTY and "seconds" in row}
        ratios = {
            kind: {n: round(little[n][kind] / plenty[n][kind], 2) for n in little.keys() & plenty.keys()}
            for kind in ("seconds", "cpu_seconds")
        }
        found.append(
            {"net": net, "peak_gb": {n: round(row["peak_bytes"] / 1e9, 2) for n, row in little.items()}, "ratio": ratios}
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default="", help="only these, with commas")
    parser.add_argument("--rows", default="", help="only rows of these numbers of images, with commas")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--row", nargs=3, metavar=("NET", "MEMORY", "IMAGES"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        torch.set_num_threads(args.threads)
        print(json.dumps(measured(args.row[0], args.row[1], int(args.row[2]), args.scratch / "memory-benchmark")))
        return
    rows = {(row["net"], row["memory"], row["images"]): row for row in known("memory").get("rows", ())}
    for key in ROWS:
        skipped = (args.nets and key[0] not in args.nets.split(",")) or (args.rows and str(key[2]) not in args.rows.split(","))
        if key in rows or skipped:
            continue
        command = [sys.executable, __file__, "--threads", str(args.threads), "--scratch", str(args.scratch), "--row"]
        ran = subprocess.run([*command, *map(str, key)], stdout=subprocess.PIPE, text=True)
        if ran.returncode:
            print(f"{key} ended with {ran.returncode}", flush=True)
            continue
        rows[key] = json.loads(ran.stdout.splitlines()[-1])
        kept(rows, args.threads)
        print(rows[key], flush=True)
    kept(rows, args.threads)


def kept(rows: dict[tuple[str, str, int], dict[str, Any]], threads: int) -> None:
    """Into the results, in the order in which they are asked for."""
    ordered = [rows[key] | {"peak_gb": rows[key]["peak_bytes"] / 1e9} for key in ROWS if key in rows]
    write("memory", {"threads": threads, "size": SIZE, "summary": summary(ordered), "rows": ordered})


if __name__ == "__main__":
    main()
