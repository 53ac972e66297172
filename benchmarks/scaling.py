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
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

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

IMAGES, FASTER, BANDWIDTH = 5000, 200.0, 25e9
"""Calibration images; an accelerator beside one core of this machine, as taken; bytes a second between machines."""
SLOW = 50e6
"""Bytes a second of the network that is simulated."""
NETS = {"resnet50": torchvision.models.resnet50, "vit_l_16": torchvision.models.vit_l_16}


def sent(module: GraphModule, paths: list[str]) -> float:
    """Bytes of the sums of a pass: a product of inputs and a Fisher matrix for every layer, in float64."""
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
        start = time.perf_counter()
        with torch.no_grad():
            module(x)
        forward = (time.perf_counter() - start) / 2
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


class Slow(Ranks):
    """Processes whose sums take as long as in a slow network."""

    waited = 0.0

    def summed(self, value: torch.Tensor) -> torch.Tensor:
        wait = 2 * (self.count - 1) / self.count * value.nbytes / SLOW
        Slow.waited += wait
        time.sleep(wait)
        return super().summed(value)


def check(data: Path, nets: Path) -> dict[str, Any]:
    """The statistics of VGG-16, whose matrices are large, by 1, 2 and 4 processes, with and without the slow network."""
    told, rows = recipe(data, nets, "vgg16_bn"), []
    for count in (2, 4):
        with started(told, count) as team:
            context = crew.opened_by_all(team, told, silent, NOTHING, refusing=False)[0]
            seconds = {}
            for name, ranks in (("fast", team.ranks), ("slow", Slow(team.ranks.number, team.ranks.count, team.ranks.local))):
                team.ranks, Slow.waited = ranks, 0.0
                start = time.perf_counter()
                replace(context, team=team).together(watched)
                seconds[name] = time.perf_counter() - start
        bytes_sent = sent(
            context.dense.module, consumers(context.dense.module, removable(context.dense.module, context.dense.channels))
        )
        said = 2 * (count - 1) / count * bytes_sent / SLOW
        rows.append({"processes": count, **seconds, "predicted": seconds["fast"] + said, "megabytes": bytes_sent / 1e6})
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
    write("scaling", known("scaling") | found)


if __name__ == "__main__":
    import scaling as importable  # what is called in another process has to be found there

    importable.main()
