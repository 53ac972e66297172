"""One map, or the places that it names, for all channels: written by expanding it to the sizes of what it meets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from oracles import distance, outputs, random_edits
from torch import Tensor, nn

import compress
import exporters
from compress.graph.channels.solve import solve
from compress.graph.surgery.remove import keep, mask
from compress.graph.trace.trace import trace

EXACT = 1e-5  # relative: sums in another order


class Gated(nn.Module):
    def __init__(self, call: Callable[[Gated, Tensor, Tensor], Tensor]):
        super().__init__()
        self.stem, self.score, self.head, self.call = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 1, 1), nn.Linear(12, 5), call

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.call(self, x, self.score(x)))


def best_tokens(s: Gated, x: Tensor, scores: Tensor) -> Tensor:
    tokens, places = x.flatten(2).transpose(1, 2), scores.flatten(1).topk(4, dim=1)[1]
    return torch.gather(tokens, 1, places.unsqueeze(-1).expand(-1, -1, tokens.size(-1))).mean(1)


def best_positions(s: Gated, x: Tensor, scores: Tensor) -> Tensor:
    x = x.flatten(2)
    n, c, _ = x.shape
    return x.gather(2, scores.flatten(2).topk(4, dim=2).indices.expand(n, c, 4)).mean(2)


WAYS: dict[str, Callable[[Gated, Tensor, Tensor], Tensor]] = {
    "expand_as": lambda s, x, scores: (x * scores.sigmoid().expand_as(x)).mean((2, 3)),
    "expand to a number": lambda s, x, scores: (scores.sigmoid().expand(-1, x.shape[1], -1, -1) * x).mean((2, 3)),
    "expand to a shape": lambda s, x, scores: (x * scores.sigmoid().expand(x.shape)).mean((2, 3)),
    "the best tokens": best_tokens,
    "the best positions": best_positions,
}


@pytest.mark.parametrize("name", WAYS)
def test_the_channels_that_it_meets_can_go_one_by_one(name: str, tmp_path: Path):
    torch.manual_seed(0)
    example, x = (torch.randn(1, 3, 9, 9),), (torch.randn(4, 3, 9, 9),)
    module = trace(Gated(WAYS[name]).eval(), example)
    channels = solve(module, example)
    assert {g.name: g.channels for g in channels.removable} == {"stem": 12}
    assert "broadcasts it over channels" in str(channels.group("score").frozen)
    for seed in range(3):
        edits = random_edits(channels.removable, seed)
        small = keep(module, channels, edits)
        assert distance(outputs(small, x), outputs(mask(module, channels, edits), x)) < EXACT
    folder = compress.save(small, tmp_path / "model.compressed", inputs=example)
    assert torch.equal(compress.load(folder)(*x), small(*x))
    done = exporters.export("onnx", small, example, tmp_path / "model.onnx", metadata={}, samples=[x])
    assert done.parity is not None and done.parity.worst_abs <= done.parity.tolerance
