"""How far several processes carry, on paper: what a pass computes and what it sends, and what stops it first.

    python benchmarks/scaling.py paper                       ResNet-50 and ViT-L/16 on 8 and 64 processes
    python benchmarks/scaling.py check CIFAR10 NETS          the formula beside a slow network, simulated, at 2 and 4 processes

    T(N) = I s / min(N, lanes) + 2 (N - 1) / N B / w              I images, s seconds of one, B bytes, w bytes a second

of a pass of statistics, which every other pass resembles. s is measured here for a few images on one core and divided by
`faster`, what an accelerator is taken to do beside that core; B is counted from the layers' shapes. In `check` every sum waits as
long as its bytes would take in a network of so many bytes a second.
"""

from __future__ import annotations

import argparse
import json
import pickle
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch
import torchvision
from processes import recipe, started, watched
from results_io import known, write
from torch.fx import GraphModule

from compress.graph.channels.solve import solve
from compress.graph.trace.trace import trace
from compress.pipeline import crew
from compress.pipeline.given import NOTHING
from compress.progress import silent
from compress.ranks import Ranks
from compress.ranks.ranks import LANES
from compress.selection.budget import removable
from compress.statistics.consumers import consumers
from compress.statistics.layers import layers

T = TypeVar("T")
IMAGES, FASTER, BANDWIDTH = 5000, 200.0, 25e9
"""Calibration images; an accelerator beside one core of this machine, as taken; bytes a second between machines."""
SLOW = 50e6
"""Bytes a second of the network that is simulated."""
NETS = {"resnet50": torchvision.models.resnet50, "vit_l_16": torchvision.models.vit_l_16}


def sent(module: GraphModule, paths: list[str]) -> float:
    """Bytes of the sums of a pass, at most: a product of inputs and a Fisher matrix for every layer, in float64.

    Where images are few beside a layer's inputs, their rows are sent instead, which are fewer bytes.
    """
    shapes = layers(module)
    return sum(8.0 * (one.groups * one.inputs**2 + one.outputs**2) for one in (shapes[path] for path in paths))


def paper() -> dict[str, Any]:
    """Seconds, bytes and efficiency of a statistics pass."""
    rows = []
    torch.set_num_threads(1)
    for name, make in NETS.items():
        torch.manual_seed(0)
        example = (torch.randn(1, 3, 224, 224),)
        module = trace(make().eval(), example)
        paths = consumers(module, removable(module, solve(module, example)))
        x = torch.randn(2, 3, 224, 224)
        forward = min(processor_seconds(module, x) for _ in range(3)) / len(x)
        for count in (1, 8, 64):
            computing = IMAGES * forward / FASTER / min(count, LANES)
            sending = 2 * (count - 1) / count * sent(module, paths) / BANDWIDTH
            alone = IMAGES * forward / FASTER
            rows.append(
                {
                    "net": name,
                    "processes": count,
                    "computing_s": computing,
                    "sending_s": sending,
                    "gigabytes": sent(module, paths) / 1e9,
                    "efficiency": alone / count / (computing + sending),
                    "first": "sending" if sending > computing else "lanes" if count > LANES else "nothing",
                }
            )
            print(rows[-1], flush=True)
    return {"paper": rows, "images": IMAGES, "faster": FASTER, "bandwidth": BANDWIDTH, "lanes": LANES}


def processor_seconds(module: GraphModule, x: torch.Tensor) -> float:
    """Of a forward pass on one thread; other work on the machine does not count."""
    start = time.process_time()
    with torch.no_grad():
        module(x)
    return time.process_time() - start


class Slow(Ranks):
    """Processes whose sums, and whatever else they send, take as long as in a slow network."""

    sent = 0.0

    def summed(self, value: torch.Tensor) -> torch.Tensor:
        self._wait(2 * (self.count - 1) / self.count * value.nbytes)
        return super().summed(value)

    def gathered(self, value: T) -> list[T]:
        self._wait((self.count - 1) * len(pickle.dumps(value)))
        return super().gathered(value)

    def _wait(self, bytes: float) -> None:
        Slow.sent += bytes
        time.sleep(bytes / SLOW)


def check(data: Path, nets: Path) -> dict[str, Any]:
    """The statistics of VGG-16, whose matrices are large, by 1, 2 and 4 processes, with and without the slow network."""
    told, rows = recipe(data, nets, "vgg16_bn", calibration=IMAGES, memory="4GB"), []
    for count in (2, 4):
        with started(told, count) as team:
            context = crew.opened_by_all(team, told, silent, NOTHING, refusing=False)[0]
            seconds = {}
            for name, ranks in (("fast", team.ranks), ("slow", Slow(team.ranks.number, team.ranks.count, team.ranks.local))):
                team.ranks, Slow.sent = ranks, 0.0
                start = time.perf_counter()
                watched(replace(context, team=team))
                seconds[name] = time.perf_counter() - start
        bytes_sent = sent(
            context.dense.module, consumers(context.dense.module, removable(context.dense.module, context.dense.channels))
        )
        counted = 2 * (count - 1) / count * bytes_sent / 1e6
        rows.append({"processes": count, **seconds, "megabytes": counted, "megabytes_sent": Slow.sent / 1e6})
        print(rows[-1], flush=True)
    return {"check": rows, "slow": SLOW}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("paper", "check"))
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("nets", type=Path, nargs="?")
    given = parser.parse_args()
    found = paper() if given.part == "paper" else check(given.data, given.nets)
    print(json.dumps(found)[:200])
    found = known("scaling") | found
    for row in found.get("check", ()):  # what the formula says, by the bytes of all sums and by those that were sent
        row["most"], row["predicted"] = (row["fast"] + 1e6 * row[sent] / SLOW for sent in ("megabytes", "megabytes_sent"))
    write("scaling", found)


if __name__ == "__main__":
    main()
