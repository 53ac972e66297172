"""Pieces cut out of a model compute what they compute inside it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from compress.artifact import Artifact
from compress.graph.merge.subgraph import piece
from compress.graph.trace.trace import trace
from compress.selection.merge_candidates import candidates, merged


def test_a_run_of_layers():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3, stride=2), nn.ReLU()).eval()
    traced = trace(net, (torch.zeros(1, 3, 9, 9),))
    cut, inputs = piece(traced, ("0", "3"))
    assert [tuple(x.shape) for x in inputs] == [(1, 3, 9, 9)]
    x = torch.randn(2, 3, 9, 9)
    assert torch.equal(cut(x), net[:4](x))
    assert [n.target for n in cut.graph.nodes if n.op == "call_module"] == ["0", "1", "2", "3"]


def test_a_block_with_its_skip():
    traced = trace(resnet18(), (torch.zeros(1, 3, 32, 32),))
    cut, inputs = piece(traced, ("layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0", "add_2"))
    assert [tuple(x.shape) for x in inputs] == [(1, 64, 8, 8)]
    assert {str(n.target) for n in cut.graph.nodes if n.op == "call_module"} == {
        f"layer2.0.{name}" for name in ("conv1", "bn1", "relu", "conv2", "bn2", "downsample.0", "downsample.1")
    }
    assert cut(torch.randn(3, 64, 8, 8)).shape == (3, 128, 4, 4)
    with pytest.raises(ValueError, match="2 values leave"):
        piece(traced, ("layer2.0.conv1", "layer2.0.downsample.0"))


def test_names_that_the_model_has_not():
    traced = trace(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), (torch.zeros(1, 2),))
    with pytest.raises(ValueError, match="has not all of"):
        piece(traced, ("0", "7"))


class Skipping(nn.Module):
    """A block whose skip connection is a module that does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.relu, self.shortcut = nn.ReLU(), nn.Sequential()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.stem(x))
        return self.relu(self.two(self.one(x)) + self.shortcut(x))


def test_a_block_whose_skip_is_a_module_without_a_name_in_the_plan():
    net = Skipping().eval()
    cut, inputs = piece(trace(net, (torch.zeros(1, 3, 8, 8),)), ("one", "two", "add"))
    assert len(inputs) == 1
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(cut(x), net.two(net.one(x)) + x)


class TwoHeads(nn.Module):
    """Each head begins with a norm of its own, as that of a distilled network does."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.one, self.two = (nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.1), nn.Linear(6, 4)) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu().mean((2, 3))
        return (self.one(x) + self.two(x)) / 2


def test_a_sum_of_two_that_begin_with_norms():
    net = TwoHeads()
    net(torch.randn(8, 3, 8, 8))
    net.eval()
    traced = trace(net, (torch.zeros(1, 3, 8, 8),))
    cut, inputs = piece(traced, ("one.2", "two.2", "add"))
    assert [tuple(x.shape) for x in inputs] == [(1, 6)]
    x = torch.randn(3, 6)
    assert torch.equal(cut(x), net.one(x) + net.two(x))
    found = candidates(Artifact(traced, (torch.zeros(1, 3, 8, 8),)), race=None).candidates
    assert ("one.2", "two.2", "add") in [one.segment.layers for one in found]
    merged(Artifact(cut, inputs), [one.segment for one in found])
