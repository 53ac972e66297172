"""A network whose convolutions pad "same" by a class of their own, made smaller without labels and without training.

    python benchmarks/same_padding.py --data cifar10 --work folder

Inverted residuals as in EfficientNet-Lite, every convolution a `Same`: padding is computed from the input's size, and then
`F.conv2d` is called, as in networks that were ported from TensorFlow. Trained here for some minutes on CIFAR-10 (JPEG q75),
then `compress run` with 1,000 unlabeled images and no training. What is told is the share of test images whose answer stays.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from dense_nets import NETS, Dense, trained
from opened import decoded
from results_io import write
from torch import Tensor, nn

from compress.pipeline.run import run
from compress.recipe import make

IMAGES, TESTED = 1000, 5000
SHARES = (0.8, 0.7, 0.6, 0.5)
BLOCKS = ((1, 16, 1), (4, 24, 2), (4, 24, 1), (4, 40, 2), (4, 40, 1), (4, 80, 1), (4, 80, 1), (4, 112, 2), (4, 112, 1))
"""(expansion, channels, stride) of each inverted residual."""


class Same(nn.Conv2d):
    """As many outputs as the stride leaves of the inputs, whatever the size."""

    def forward(self, input: Tensor) -> Tensor:
        sides = zip(input.shape[-2:], self.kernel_size, self.stride, strict=True)
        high, wide = (max((math.ceil(n / s) - 1) * s + k - n, 0) for n, k, s in sides)
        input = F.pad(input, [wide // 2, wide - wide // 2, high // 2, high - high // 2])
        return F.conv2d(input, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


def convolved(i: int, o: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True) -> nn.Sequential:
    layers = [Same(i, o, kernel, stride, groups=groups, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, *([nn.ReLU6()] if active else []))


class Block(nn.Module):
    """An inverted residual."""

    def __init__(self, i: int, o: int, expansion: int, stride: int):
        super().__init__()
        wide = i * expansion
        first = [convolved(i, wide, 1)] if expansion > 1 else []
        self.layers = nn.Sequential(*first, convolved(wide, wide, 3, stride, wide), convolved(wide, o, 1, active=False))
        self.added = stride == 1 and i == o

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.added else self.layers(x)


def net() -> nn.Module:
    """About 400,000 parameters, for images of 3x32x32."""
    layers: list[nn.Module] = [convolved(3, 24, 3)]
    width = 24
    for expansion, channels, stride in BLOCKS:
        layers.append(Block(width, channels, expansion, stride))
        width = channels
    return nn.Sequential(*layers, convolved(width, 256, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10))


NETS["same_padding"] = Dense(net, ((16, 5, 0.1), (32, 1, 0.05)), "sgd", 5e-4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="unpacked cifar10 folder: train/CLASS/*.jpg, test/CLASS/*.jpg")
    parser.add_argument("--work", required=True, type=Path, help="folder of the state_dicts")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    dense = trained("same_padding", args.work, args.data)
    rows = [row(share, args) for share in SHARES]
    settings = {"images": IMAGES, "tested": TESTED, "seed": args.seed, "phases": NETS["same_padding"].phases}
    write("same_padding", {"settings": settings, "parameters": sum(p.numel() for p in dense.parameters()), "rows": rows})


def row(share: float, args: argparse.Namespace) -> dict[str, Any]:
    """One run of the whole sequence, label-free."""
    arrays = dict(decoded(args.data))
    chosen = np.random.default_rng(args.seed).permutation(len(arrays["x_train"]))[:IMAGES]
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder, "images.npz"), x_train=arrays["x_train"][chosen], x_test=arrays["x_test"][: 2 * TESTED : 2])
        data = Path(folder, "data.toml")
        data.write_text('source = "images.npz"\nnormalize = "cifar10"\n')
        model, arch = args.work / "same_padding_32.pt", f"{Path(__file__).resolve()}:net"
        how = {"target": f"macs={share}", "epochs": 0, "depth": 0, "align": 1, "calibration": IMAGES, "threads": 1, "rounds": 5}
        report = run(
            make(model=str(model), arch=arch, data=str(data), trust_recipe=True, seed=args.seed, **how), Path(folder, "out")
        )
    dense, result = report.dense, report.result
    assert result.quality
    found = {"target": share, "macs": result.macs / dense.macs, "params": result.params / dense.params}
    return found | {"metric": result.quality.metric, "answers_that_stay": result.quality.value}


if __name__ == "__main__":
    main()
