"""A small net on scikit-learn's 8x8 digits, trained in seconds: something real to compress, without a download."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.data import open_data
from compress.measure import quality
from compress.progress import Progress
from compress.recipe import make
from compress.training import train

ARCH = "compress.demo:digits_net"
EPOCHS = 15.0


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
    """The net with fresh weights, as `--arch compress.demo:digits_net` builds it."""
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
    torch.save(trained.state_dict(), path)
    return Demo(path, ARCH, "digits", top1.value)
