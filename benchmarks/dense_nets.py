"""Dense nets for benchmarks, trained here from fresh weights on CIFAR-10 (JPEG q75).

    python benchmarks/dense_nets.py resnet18 --data cifar10 --work folder

Short recipes for a machine without a GPU: first on small copies of the images, then on the images themselves, in bfloat16.
State_dicts go to the work folder, one of every size; those that it has are not trained again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torchvision.models as zoo
from depth import small_stem
from opened import decoded
from torch import nn

from compress.data import from_arrays
from compress.recipe import make
from compress.training import train


@dataclass(frozen=True)
class Dense:
    """A net and its training: (side of the images in pixels, epochs, peak learning rate), one after the other."""

    build: Callable[[], nn.Module]
    phases: tuple[tuple[int, int, float], ...]
    optimizer: str
    weight_decay: float


def resnet18() -> nn.Module:
    """ResNet-18 with a stem for small images: 11,173,962 parameters, 17 rectifiers."""
    return small_stem(zoo.resnet18(num_classes=10))


def swin() -> nn.Module:
    """A Swin transformer for small images: patches of 2x2, three stages of 2, 2 and 6 blocks, 10 rectifiers (GELU)."""
    return zoo.SwinTransformer([2, 2], 48, [2, 2, 6], [2, 4, 8], [4, 4], stochastic_depth_prob=0.0, num_classes=10)


def vit() -> nn.Module:
    """A vision transformer for small images: patches of 4x4, 6 blocks of 96 channels, 6 rectifiers (GELU)."""
    return zoo.VisionTransformer(32, 4, 6, 3, 96, 192, num_classes=10)


NETS = {
    "resnet18": Dense(resnet18, ((16, 6, 0.1), (32, 2, 0.03)), "sgd", 5e-4),
    "vit": Dense(vit, ((32, 8, 1e-3),), "adamw", 5e-2),
    "swin": Dense(swin, ((16, 10, 1e-3), (32, 6, 5e-4)), "adamw", 5e-2),
}


def smaller(images: np.ndarray, side: int) -> np.ndarray:
    """Images (N, H, W, C) of uint8, averaged over squares of pixels."""
    count, height, width, channels = images.shape
    square = images.reshape(count, side, height // side, side, width // side, channels)
    return square.mean((2, 4)).round().astype(np.uint8)


def trained(name: str, work: Path, data: Path) -> nn.Module:
    """The net with the weights that the work folder has, or that this makes."""
    dense, arrays = NETS[name], dict[str, np.ndarray]()
    torch.manual_seed(0)
    net = dense.build()
    for side, epochs, lr in dense.phases:
        path = work / f"{name}_{side}.pt"
        if not path.exists():
            arrays = arrays or dict(decoded(data))
            sized = {key: smaller(value, side) if key.startswith("x_") else value for key, value in arrays.items()}
            shown = from_arrays(sized, normalize="cifar10", augment={"flip": True, "shift": side // 8}, name="cifar10")
            steps = {"epochs": epochs, "optimizer": dense.optimizer, "lr": lr, "weight_decay": dense.weight_decay}
            recipe = make(**steps, batch_size=128, distill=0.0, precision="bf16")
            done = train(net, shown, recipe, progress=lambda _, share, text: print(f"{share:.3f} {text}", end="\r"))
            torch.save(done.module.state_dict(), path)
            print(f"{name}, {side}x{side}: held-out top-1 {[round(e.quality, 4) for e in done.history]}", flush=True)
        net.load_state_dict(torch.load(path, weights_only=True))
    return net.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=list(NETS))
    parser.add_argument("--data", required=True, type=Path, help="unpacked cifar10 folder: train/CLASS/*.jpg, test/CLASS/*.jpg")
    parser.add_argument("--work", required=True, type=Path, help="folder of the state_dicts")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    trained(args.net, args.work, args.data)


if __name__ == "__main__":
    main()
