"""A small net on scikit-learn's 8x8 digits, trained in seconds: something real to compress, without a download."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.data import open_data
from compress.errors import BadInput
from compress.keywords import Settings
from compress.measure import quality
from compress.pipeline import run as pipeline
from compress.progress import Progress, silent
from compress.recipe import make
from compress.report.records import Report
from compress.training import train
from exporters import atomic

ARCH = "compress.commands.demo:digits_net"
EPOCHS = 15.0
DEMO: dict[str, Any] = {"target": "params=0.25", "align": 8, "epochs": 5, "batch": 64}
"""What the demonstration asks for where nothing else is said."""


class DigitsNet(nn.Module):
    """Three convolutions, the middle two inside a residual block, and one linear layer: 38,122 parameters."""

    def __init__(self, width: int = 32, classes: int = 10):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv4 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn4 = nn.BatchNorm2d(2 * width)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes) of images (n, 1, 8, 8)."""
        x = functional.relu(self.bn1(self.conv1(x)))
        inner = functional.relu(self.bn2(self.conv2(x)))
        x = functional.relu(self.bn3(self.conv3(inner)) + x)
        x = functional.relu(self.bn4(self.conv4(x)))
        return self.fc(x.mean((2, 3)))


@dataclass(frozen=True)
class Demo:
    """What `compress run` needs: `compress run MODEL --arch ARCH --data DATA`."""

    model: Path
    arch: str
    data: str
    top1: float


def digits_net() -> DigitsNet:
    """The net with fresh weights, as `--arch compress.commands.demo:digits_net` builds it."""
    return DigitsNet()


def make_demo(folder: str | Path, *, seed: int = 0, epochs: float = EPOCHS, progress: Progress | None = None) -> Demo:
    """Train the net and write its state_dict to `folder`/model.pt.

    Raises:
        BadInput: scikit-learn is not installed; names the line to type.
    """
    data = open_data("digits", seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = digits_net()
    recipe = make(epochs=epochs, lr=5e-3, batch_size=64, seed=seed, weight_decay=1e-2)
    trained = train(net, data, recipe, progress=progress).module
    top1 = quality.evaluate(trained, data.test.batches(quality.BATCH), quality.METRICS["top1"])
    path = Path(folder) / "model.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = BytesIO()
    torch.save(trained.state_dict(), content)
    atomic.write(path, content.getvalue())  # whole, and never through a link
    return Demo(path, ARCH, "digits", top1.value)


def demo(
    *, out: str | Path = "demo-out", force: bool = False, progress: Progress = silent, **settings: Unpack[Settings]
) -> Report:
    """Train a small net on scikit-learn's digits into `out`/model.pt (once), and compress it into `out`/run.

    Raises:
        BadInput: scikit-learn is missing, or `out`/run exists and `force` is not given.
    """
    if ((folder := Path(out)) / "run").exists() and not force:
        raise BadInput(f"{folder / 'run'} holds an earlier demonstration. Add --force to replace it, or give another --out.")
    if not (folder / "model.pt").exists():
        make_demo(folder, progress=progress)
    recipe = make(model=str(folder / "model.pt"), arch=ARCH, data="digits", **{**DEMO, **settings})
    return pipeline.run(recipe, folder / "run", force=force, progress=progress)
