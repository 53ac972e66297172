"""A character-level transformer made smaller: run with `python examples/characters.py [FOLDER]`, or use its parts:

    compress run characters.pt --arch examples/characters.py:net --data examples/characters.py:data --target macs=0.6

Text is the task `text`: for each token the data gives the next one, the model gives (n, t, classes), quality is perplexity. What
goes are hidden channels of the MLPs and attention heads. Here the text is the manual that comes with Python, so that nothing is
downloaded.
"""

from __future__ import annotations

import sys
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import compress
from compress.data import open_data
from compress.recipe import make
from compress.report.records import Report
from compress.training import train

LENGTH = 64  # characters that are looked at
CHARACTERS = 96  # printable ASCII, and one number for the rest
WIDTH, HEADS, BLOCKS = 64, 4, 2


class Block(nn.Module):
    """Causal attention and an MLP, each added to the stream."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """(n, t, WIDTH) -> (n, t, WIDTH)."""
        y = self.norm1(x)
        parts = (layer(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        seen = functional.scaled_dot_product_attention(*parts, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class Characters(nn.Module):
    """Scores of the character behind each one."""

    def __init__(self):
        super().__init__()
        self.characters, self.places = nn.Embedding(CHARACTERS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CHARACTERS)
        self.register_buffer("order", torch.arange(LENGTH), persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        """(n, LENGTH), floats as all inputs here, -> (n, LENGTH, CHARACTERS)."""
        x = self.characters(numbers.long().clamp(0, CHARACTERS - 1)) + self.places(self.order)
        return self.head(self.norm(self.blocks(x)))


def net() -> Characters:
    """The network of `--arch`, with fresh weights."""
    return Characters()


def data(count: int = 5000) -> dict[str, np.ndarray]:
    """Pieces of text and, for each character, the one behind it."""
    text = "\n".join(topics[name] for name in sorted(topics))
    numbers = np.array([ord(c) - 31 if 32 <= ord(c) < 127 else 0 for c in text], dtype=np.int64)
    pieces = numbers[: (len(numbers) - 1) // LENGTH * LENGTH].reshape(-1, LENGTH)
    behind = numbers[1 : pieces.size + 1].reshape(-1, LENGTH)
    cut = len(pieces) * 9 // 10  # the test text is another part of the manual
    chosen = np.random.default_rng(0).permutation(cut)[:count]
    return {"x_train": pieces[chosen], "y_train": behind[chosen], "x_test": pieces[cut:][:500], "y_test": behind[cut:][:500]}


def written(model: nn.Module, begin: str, count: int = 80) -> str:
    """How a model goes on, always with the likeliest character."""
    text = begin
    for _ in range(count):
        last = [ord(c) - 31 for c in text[-LENGTH:]]
        with torch.no_grad():
            scores = model(torch.tensor([last + [0] * (LENGTH - len(last))], dtype=torch.float32))
        text += chr(int(scores[0, len(last) - 1, 1:].argmax()) + 32)
    return text


def main(folder: Path, epochs: float = 6) -> Report:
    """Train the model, make it smaller, and let both write."""
    here = Path(__file__).resolve()
    source = f"{here}:data"
    settings: dict[str, Any] = {"batch_size": 64, "lr": 3e-3}
    torch.manual_seed(0)
    dense = train(net(), open_data(source), make(**settings, epochs=epochs, distill=0.0)).module
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dense.state_dict(), folder / "characters.pt")
    report = compress.run(
        folder / "characters.pt", arch=f"{here}:net", data=source, target="macs=0.6", epochs=epochs / 3, rounds=10, force=True,
        out=folder / "out", **settings,
    )  # fmt: skip
    assert isinstance(report, Report), "not a dry run"
    print(report.verdict)
    for model in (dense.eval(), compress.load(folder / "out" / "model.compressed")):
        print(repr(written(model, "The statement ")))
    return report


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "characters-example"))
