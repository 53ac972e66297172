"""A U-Net made smaller: run with `python examples/segmentation.py [FOLDER]`, or use its parts on the command line:

    compress run unet.pt --arch examples/segmentation.py:net --data examples/segmentation.py:data --target macs=0.25

Channels go together through the concatenations that carry the encoder's maps to the decoder; masks move with their images when
these are flipped or shifted. The pictures are noise with brighter squares and discs, so that nothing is downloaded; a folder
with images/*.jpg and masks/*.png takes their place with `--data FOLDER`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import compress
from compress.data import open_data
from compress.recipe import make
from compress.report.records import Report
from compress.training import train

SIZE = 32
CLASSES = 3  # background, square, disc


def twice(into: int, out: int) -> nn.Sequential:
    """Two convolutions with their norms."""
    layers = [[nn.Conv2d(i, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()] for i in (into, out)]
    return nn.Sequential(*layers[0], *layers[1])


class UNet(nn.Module):
    """Two steps down, two steps up, with what was seen on the way down beside it."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.first, self.second, self.bottom = twice(1, width), twice(width, 2 * width), twice(2 * width, 4 * width)
        self.up2, self.up1 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.third, self.last = twice(4 * width, 2 * width), twice(2 * width, width)
        self.pool, self.head = nn.MaxPool2d(2), nn.Conv2d(width, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 1, SIZE, SIZE) -> scores (n, CLASSES, SIZE, SIZE)."""
        first = self.first(images)
        second = self.second(self.pool(first))
        x = self.up2(self.bottom(self.pool(second)))
        x = self.up1(self.third(torch.cat([x, second], 1)))
        return self.head(self.last(torch.cat([x, first], 1)))


def net() -> UNet:
    """The network of `--arch`, with fresh weights."""
    return UNet()


def data(count: int = 800) -> dict[str, np.ndarray]:
    """Pictures (n, SIZE, SIZE) with two objects each, and their masks of class numbers."""
    random = np.random.default_rng(0)
    images = random.integers(0, 120, (count, SIZE, SIZE)).astype(np.uint8)
    masks = np.zeros((count, SIZE, SIZE), dtype=np.int64)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    for image, mask in zip(images, masks, strict=True):
        for kind in (1, 2):
            side = random.integers(8, 15)
            top, left = random.integers(0, SIZE - side, 2)
            if kind == 1:
                inside = (rows >= top) & (rows < top + side) & (columns >= left) & (columns < left + side)
            else:
                inside = np.hypot(rows - top - side / 2, columns - left - side / 2) < side / 2
            mask[inside] = kind
        image[mask > 0] += 80
    cut = count * 4 // 5
    return {"x_train": images[:cut], "y_train": masks[:cut], "x_test": images[cut:], "y_test": masks[cut:]}


def main(folder: Path, epochs: float = 8) -> Report:
    """Train the network, make it smaller, and show what one picture became."""
    here = Path(__file__).resolve()
    source = f"{here}:data"
    settings: dict[str, Any] = {"batch_size": 32, "lr": 3e-3}
    torch.manual_seed(0)
    dense = train(net(), open_data(source), make(**settings, epochs=epochs, distill=0.0)).module
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dense.state_dict(), folder / "unet.pt")
    report = compress.run(
        folder / "unet.pt", arch=f"{here}:net", data=source, target="macs=0.25", epochs=epochs / 2, rounds=10, force=True,
        out=folder / "out", **settings,
    )  # fmt: skip
    assert isinstance(report, Report), "not a dry run"
    print(report.verdict)
    model = compress.load(folder / "out" / "model.compressed")
    with torch.no_grad():
        shown = model(next(open_data(source).test.batches(1)).inputs[0]).argmax(1)[0]
    print("\n".join("".join(".#o"[kind] for kind in row) for row in shown.tolist()))
    return report


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "segmentation-example"))
