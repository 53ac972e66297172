"""Norms of which channels have gone: the others get what they got while those were zeros."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from oracles import distance, outputs
from torch import Tensor, nn

import exporters
from compress.artifact import Artifact
from compress.checkpoint.load import load
from compress.checkpoint.save import save
from compress.edits import Keep
from compress.graph.channels.solve import solve
from compress.graph.partial_norm import PartialNorm, partial_norm
from compress.graph.surgery.remove import keep, mask
from compress.graph.trace.trace import trace

KINDS: dict[str, Any] = {
    "LayerNorm": lambda: nn.LayerNorm(12, eps=1e-2),
    "LayerNorm without bias": lambda: nn.LayerNorm(12, bias=False),
    "LayerNorm without weight": lambda: nn.LayerNorm(12, elementwise_affine=False),
    "RMSNorm": lambda: nn.RMSNorm(12, eps=1e-2),
    "RMSNorm without weight": lambda: nn.RMSNorm(12, elementwise_affine=False),
    "GroupNorm": lambda: nn.GroupNorm(1, 12, eps=1e-2),
    "GroupNorm without weight": lambda: nn.GroupNorm(1, 12, affine=False),
}


def drawn(kind: str) -> nn.Module:
    torch.manual_seed(0)
    norm = KINDS[kind]()
    for p in norm.parameters():
        nn.init.uniform_(p, 0.5, 1.5)
    return norm


@pytest.mark.parametrize("kind", KINDS)
def test_channels_that_went_count_as_zeros(kind: str):
    norm, stay = drawn(kind), [0, 2, 3, 7, 11]
    images = isinstance(norm, nn.GroupNorm)
    x = torch.randn(2, 5, 3, 4) if images else torch.randn(2, 3, 4, 5)
    axis = 1 if images else -1
    whole = torch.zeros([12 if size == 5 else size for size in x.shape]).index_copy(axis, torch.tensor(stay), x)
    expected = norm(whole).index_select(axis, torch.tensor(stay))
    for p in norm.parameters():
        p.data = p.data[stay]
    made = partial_norm(norm, 5)
    assert torch.allclose(made(x), expected, atol=1e-5)
    assert made.state_dict().keys() == norm.state_dict().keys()
    rows = [copy.deepcopy(p)[:3] for p in made.parameters()]
    for p, row in zip(made.parameters(), rows, strict=True):
        p.data = row
    again = partial_norm(made, 3)  # of all there once were, not of the five
    whole.index_fill_(axis, torch.tensor(stay[3:]), 0)
    expected = drawn(kind)(whole).index_select(axis, torch.tensor(stay[:3]))
    assert torch.allclose(again(x.narrow(axis, 0, 3)), expected, atol=1e-5)


def test_a_norm_of_images_without_a_mean_is_refused():
    with pytest.raises(ValueError, match="takes the mean away"):
        PartialNorm(2, 4, axis=1, centered=False)


@pytest.mark.parametrize("sizes", [dict(channels=0, of=4), dict(channels=5, of=4), dict(channels=2, of=4, axis=2)])
def test_a_norm_of_impossible_sizes_is_refused(sizes: dict[str, int]):
    with pytest.raises(ValueError, match="its channels are on axis 1 or -1"):
        PartialNorm(**sizes)


class Stream(nn.Module):
    """Two blocks of a transformer without attention: what is added to one stream, and a norm in front of each reader."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.place = nn.Conv2d(3, 12, 4, 4), nn.Parameter(torch.randn(1, 4, 12))
        self.norms = nn.ModuleList([nn.LayerNorm(12), nn.RMSNorm(12), nn.LayerNorm(12)])
        self.wide, self.narrow = nn.ModuleList(nn.Linear(12, 20) for _ in "ab"), nn.ModuleList(nn.Linear(20, 12) for _ in "ab")
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2) + self.place
        for norm, wide, narrow in zip(self.norms, self.wide, self.narrow, strict=False):
            x = x + narrow(torch.relu(wide(norm(x))))
        return self.head(self.norms[2](x).mean(1))


def test_a_residual_stream_becomes_narrower_is_stored_trained_and_exported(tmp_path: Path):
    torch.manual_seed(0)
    x = torch.randn(3, 3, 8, 8)
    module = trace(Stream().eval(), (x[:1],))
    channels = solve(module, (x[:1],))
    edits = [Keep("patch", 12, (0, 1, 4, 5, 9))]
    small = keep(module, channels, edits)
    assert distance(outputs(small, (x,)), outputs(mask(module, channels, edits), (x,))) < 2e-5
    assert distance(outputs(small, (x,)), outputs(module, (x,))) > 1e-2
    assert [type(small.get_submodule(f"norms.{i}")) for i in range(3)] == [PartialNorm] * 3
    save(Artifact(small, (x[:1],)), tmp_path / "model.compressed")
    again = load(tmp_path / "model.compressed")
    assert distance(outputs(again, (x,)), outputs(small, (x,))) == 0
    again.train()(x).sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in again.parameters())
    done = exporters.export("onnx", small, (x[:1],), tmp_path / "model.onnx", metadata={}, samples=[(x,)])
    assert done.parity is not None and done.parity.worst_abs <= done.parity.tolerance
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert session.run(None, {session.get_inputs()[0].name: x.numpy()})[0].shape == (3, 5)
