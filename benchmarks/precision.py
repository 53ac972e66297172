"""Seconds of training steps in bfloat16 and in single precision, in turns: python benchmarks/precision.py

What `--precision bf16` saves depends on the processor: without units for it, it may cost time. Random images, fresh weights;
the ratio is the median over rounds, of `--steps` steps each. What it does to accuracy is not asked here.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import dense_nets
import mobilenet
import numpy as np
import torch
from depth import small_vgg
from results_io import write
from torch import nn

from compress.data import Data, from_arrays
from compress.recipe import make
from compress.training import train

NETS = {
    "ResNet-18": dense_nets.resnet18,
    "VGG-16-BN": small_vgg,
    "MobileNetV2, width 0.5": mobilenet.net,
    "Swin, 10 blocks": dense_nets.swin,
}
BATCH = 64


def seconds(net: nn.Module, data: Data, steps: int, precision: str) -> float:
    recipe = make(epochs=1, batch_size=BATCH, distill=0.0, precision=precision)
    start = time.perf_counter()
    train(net, data, recipe)
    return (time.perf_counter() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    draw, held_out = np.random.default_rng(0), 8
    count = args.steps * BATCH + held_out
    images, labels = draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), draw.integers(0, 10, count)
    arrays = {"x_train": images, "y_train": labels, "x_test": images[:8], "y_test": labels[:8]}
    data = from_arrays(arrays, normalize="cifar10", split={"held_out": held_out / count})
    found: dict[str, Any] = {}
    for name, build in NETS.items():
        net = build()
        rows = [[seconds(net, data, args.steps, precision) for precision in ("fp32", "bf16")] for _ in range(args.rounds + 1)][1:]
        single, half = zip(*rows, strict=True)
        ratios = sorted(slow / quick for slow, quick in rows)
        found[name] = {
            "images_per_second": {"fp32": BATCH / statistics.median(single), "bf16": BATCH / statistics.median(half)},
            "faster": statistics.median(ratios),
            "slowest_round": ratios[0],
            "fastest_round": ratios[-1],
        }
        print(name, found[name], flush=True)
    write("precision", {"threads": args.threads, "batch": BATCH, "steps": args.steps, "rounds": args.rounds, "nets": found})


if __name__ == "__main__":
    main()
