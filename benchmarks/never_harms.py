"""Does the training that a user gets ever leave a model worse than it was before?

    python benchmarks/never_harms.py --data cifar10 --mnist mnist.npz --nets nets --work work [--core 0] [--only resnet20]

Networks and targets, small ones with three seeds (of their own training, of the choice of images and of fine-tuning). Each is
made smaller by the default method, fine-tuned by the default training, and both states are counted on the test images, which
nobody chose by: the paired 95 % interval of what fine-tuning lost says `harmed` where all of it is above zero. Finished rows are
not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from contracts import flags, images
from latency_targets import ready
from mnist import lenet5
from opened import decoded
from results_io import known, write
from torch import Tensor, nn

from compress.artifact import Artifact
from compress.commands.demo import DigitsNet
from compress.data import open_data
from compress.measure import quality
from compress.measure.drop import SLICES, drop_interval
from compress.measure.points import drop
from compress.pipeline.prepare import prepare
from compress.pipeline.sequence import stages_of
from compress.recipe import make
from compress.stage import Context
from compress.training import train

CPU = torch.device("cpu")


class Transformer(nn.Module):
    """A vision transformer for 8x8 digits: patches of 2x2, two blocks of 48 channels in four heads."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.places = nn.Conv2d(1, 48, 2, 2), nn.Parameter(0.02 * torch.randn(1, 16, 48))
        block = nn.TransformerEncoderLayer(48, 4, 96, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks, self.head = nn.TransformerEncoder(block, 2, enable_nested_tensor=False), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, 10) of images (n, 1, 8, 8)."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.blocks(tokens).mean(1))


def perceptron() -> nn.Module:
    """Three linear layers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))


def plain() -> nn.Module:
    """Four convolutions without norms, for CIFAR-10: what a first program of one's own looks like."""
    parts: list[nn.Module] = []
    for into, out in ((3, 24), (24, 32), (32, 48), (48, 64)):
        parts += [nn.Conv2d(into, out, 3, padding=1), nn.ReLU(), *([nn.MaxPool2d(2)] if out > 24 else [])]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


OWN: dict[str, tuple[Callable[[], nn.Module], str, float]] = {
    "digits CNN": (lambda: DigitsNet(16), "digits", 25),
    "digits MLP": (perceptron, "digits", 40),
    "digits transformer": (Transformer, "digits", 60),
    "LeNet-5": (lenet5, "mnist", 6),
    "plain CNN": (plain, "cifar10", 15),
}
"""Networks that are trained here: factory, data, epochs."""
PAIRS: dict[str, tuple[tuple[str, ...], float | None, int]] = {
    "digits CNN": (("macs=0.5", "params=0.25"), None, 3),
    "digits MLP": (("macs=0.5", "params=0.2"), None, 3),
    "digits transformer": (("macs=0.7", "params=0.5"), None, 3),
    "LeNet-5": (("macs=0.5", "params=0.2"), None, 3),
    "plain CNN": (("macs=0.6", "params=0.4"), None, 1),
    "resnet20": (("macs=0.7", "macs=0.5"), 1, 1),
    "vgg16_bn": (("params=0.105", "macs=0.5"), 0.25, 1),
}
"""Targets, epochs of fine-tuning (None: the default) and seeds of every network."""


def main() -> None:
    args = ready(flags(__doc__, PAIRS))
    for net in args.only:
        targets, epochs, seeds = PAIRS[net]
        for seed in range(seeds):
            for target in targets:
                rows = list(known("never_harms").get("rows", []))
                key = {"net": net, "target": target, "seed": seed}
                if any(key.items() <= row.items() for row in rows):
                    continue
                rows.append(key | tuned(net, target, epochs, seed, args))
                print(rows[-1], flush=True)
                write("never_harms", {"summary": summary(rows), "rows": rows})


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How often training harmed, was taken back, and helped."""
    return {
        "pairs": len({(row["net"], row["target"]) for row in rows}),
        "trainings": len(rows),
        "harmed": sum(row["lost_ci95"][0] > 0 for row in rows),
        "taken_back": sum(row["taken_back"] for row in rows),
        "helped": sum(row["lost_ci95"][1] < 0 for row in rows),
    }


def tuned(net: str, target: str, epochs: float | None, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """One network at one target: test quality before and after fine-tuning."""
    settings = {"target": target, "seed": seed, "align": 1, "threads": 1, "device": "cpu", **model(net, seed, args)}
    recipe = make(**settings, **({} if epochs is None else {"epochs": epochs}))
    context, metric = prepare(recipe)
    before = after = context.dense
    for stage in stages_of(recipe):
        before, after = after, stage(after, context)
        if stage.traits.trains:
            break
    quality_of = [quality.finished(counted(one, metric, context), metric) for one in (context.dense, before, after)]
    interval = drop_interval(metric, counted(before, metric, context), counted(after, metric, context))
    assert interval is not None, "test images are hits or not"
    return {
        **dict(zip(("dense", "before", "after"), (one.value for one in quality_of), strict=True)),
        "epochs": recipe.epochs,
        "samples": quality_of[0].samples,
        "lost": drop(quality_of[1], quality_of[2]),
        "lost_ci95": interval,
        "taken_back": any("taken back" in note for note in after.notes),
    }


def counted(artifact: Artifact, metric: quality.Metric, context: Context) -> quality.Counted:
    batches = context.data.test.batches(quality.BATCH)
    return quality.count(artifact.module, batches, metric, CPU, context.dense.module, SLICES)


def model(net: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Where the network and its data are; those that are trained here are made first."""
    if net not in OWN:
        weights = {"model": str(args.nets / f"{net}.pt"), "arch": f"{args.nets / 'nets.py'}:{net}"}
        return weights | {"data": pictures("cifar10", args), "input_shape": ("3x32x32",)}
    build, name, epochs = OWN[net]
    shown = pictures(name, args)
    path = args.work / f"{net.replace(' ', '-')}-{seed}.pt"
    if not path.exists():
        torch.manual_seed(seed)
        recipe = make(epochs=epochs, lr=2e-3, batch_size=64, distill=0.0, seed=seed)
        torch.save(train(build(), open_data(shown), recipe).module, path)
    return {"model": str(path), "data": shown, "trust_pickle": True}


def pictures(name: str, args: argparse.Namespace) -> str:
    """Data as `--data` takes it: part of the training images, all test images."""
    match name:
        case "mnist":
            return images(args.work / "mnist.npz", lambda: dict(np.load(args.mnist)))
        case "cifar10":
            return images(args.work / "cifar10.npz", lambda: dict(decoded(args.data)), "cifar10")
        case _:
            return name


if __name__ == "__main__":
    main()
