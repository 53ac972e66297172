"""Which value is the map of a convolution, and that batches add up."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.entropy.spatial import spatial
from compress.graph.trace.trace import trace
from compress.statistics.spatial_maps import Watching, entropies, maps


class Block(nn.Module):
    """A residual block behind a stem, its activation called twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv1, self.conv2 = (nn.Conv2d(i, 4, 3, padding=1) for i in (3, 4, 4))
        self.norm, self.relu, self.head = nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x):
        x = self.relu(self.stem(x))
        x = self.relu(self.norm(self.conv2(torch.tanh(self.conv1(x)))) + x)
        return self.head(x.mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    inputs = (torch.randn(2, 3, 8, 8),)
    return trace(Block().eval(), inputs)


def test_a_map_is_what_leaves_the_norm_and_the_activation_behind_a_convolution(net):
    places = {path: node for node, path in maps(net).items()}
    nodes = {node.name: node for node in net.graph.nodes}
    assert nodes[places["stem"]].target == "relu"  # the first of its calls, though it is called again behind the sum
    assert "tanh" in places["conv1"]
    assert nodes[places["conv2"]].target == "norm"  # a sum follows


def test_entropies_are_those_of_the_maps_themselves(net):
    x = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = entropies(net, [(x[:4],), (x[4:],)], torch.device("cpu"), "aura")
    with torch.no_grad():
        stem = net.stem(x).relu()
    expected = spatial(stem, "aura")
    assert found["stem"].value == pytest.approx(expected.value) and found["stem"].maps == 24
    assert set(found) == {"stem", "conv1", "conv2"}


def test_a_watched_model_computes_what_it_computes_and_stops_watching(net):
    x = torch.randn(4, 3, 8, 8)
    run = Watching(net, "pairwise", images=5)
    with torch.no_grad():
        assert torch.equal(run(x), net(x))
        run(x), run(x)
    assert run.layers["stem"].maps == 2 * 4 * 4  # the batch in which five were reached is seen to its end
    silent = Watching(net, None)
    with torch.no_grad():
        silent(x)
    assert silent.layers == {}


def test_maps_of_one_pixel_are_left_out():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 2), nn.Flatten())
    traced = trace(net.eval(), (torch.randn(1, 1, 4, 4),))
    assert list(maps(traced).values()) == ["0"]
    assert set(entropies(traced, [(torch.randn(2, 1, 4, 4),)], torch.device("cpu"), "pairwise")) == {"0"}
