"""Entropy guidance: log volumes by hand, their gradients, their normalization, and a training that follows them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from compress.api import analyze
from compress.data import open_data
from compress.entropy.volume import FLOOR, corner_nats, singular_nats
from compress.graph.trace.trace import trace
from compress.recipe import make
from compress.training import train
from compress.training.guidance import Guidance, guidance, log_volume


def guided(module: nn.Module, *shape: int) -> Guidance:
    found = guidance(module, lambda: module(torch.zeros(1, *shape)))
    assert found is not None
    return found


def test_the_volume_of_a_square_layer_is_the_log_of_its_determinant():
    torch.manual_seed(0)
    weight = torch.randn(6, 6, dtype=torch.float64)
    assert float(singular_nats(weight).sum()) == pytest.approx(float(torch.linalg.slogdet(weight).logabsdet), abs=1e-6)


def test_a_layer_that_is_not_square_has_the_volume_of_the_directions_it_keeps():
    weight = torch.diag(torch.tensor([2.0, 3.0, 0.5]))
    wide = torch.cat([weight, torch.zeros(3, 4)], 1)
    expected = [math.log(3), math.log(2), math.log(0.5)]
    assert singular_nats(wide).tolist() == pytest.approx(expected, abs=1e-5) == singular_nats(wide.T).tolist()


def test_the_volume_of_a_filter_is_the_mean_of_the_first_entries_of_its_kernels():
    weight = torch.full((3, 2, 3, 3), 7.0)
    weight[:, :, 0, 0] = torch.tensor([[1.0, -1.0], [-math.e, math.e**3], [0.0, 0.0]])
    assert corner_nats(weight).tolist() == pytest.approx([0.0, 2.0, math.log(FLOOR)], abs=1e-6)


def test_a_convolution_as_a_matrix_has_the_determinant_that_its_first_entry_says():
    """A convolution that starts outside, at the last row and column of its kernel, is triangular: the paper's case."""
    torch.manual_seed(0)
    kernel = torch.randn(1, 1, 3, 3, dtype=torch.float64)
    unit = torch.eye(25, dtype=torch.float64).view(25, 1, 5, 5)
    columns = nn.functional.conv2d(nn.functional.pad(unit, (0, 2, 0, 2)), kernel).view(25, 25)
    determinant = torch.linalg.slogdet(columns).logabsdet
    assert float(25 * corner_nats(kernel)) == pytest.approx(float(determinant), abs=1e-4)  # the 1e-8 beside |c11|


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (3, 1, 3, 3), (4, 2, 3, 3), (4, 3, 1)])
def test_gradients_are_those_of_finite_differences(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(singular_nats if len(shape) == 2 else corner_nats, (weight,))


def test_layers_count_by_their_values():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Conv2d(2, 6, 3, stride=3, groups=2), nn.Flatten(), nn.Linear(24, 3), nn.Linear(3, 5)
    )
    with torch.no_grad():
        for part, value in zip(net, (0.5, 2.0, None, None, None), strict=True):
            if value is not None:
                part.weight.fill_(value)
        net[3].weight.copy_(torch.eye(3, 24))
        net[4].weight.copy_(4 * torch.eye(5, 3))
    linear, spatial = (v.detach() for v in guided(net, 1, 8, 8).volumes())
    assert float(linear) == pytest.approx(3 * math.log(4) / 6, abs=1e-5)  # three directions of length 1, three of length 4
    values = 2 * 36, 6 * 4  # filters times positions
    assert float(spatial) == pytest.approx((values[0] * math.log(0.5) + values[1] * math.log(2)) / sum(values), abs=1e-5)


def test_the_size_of_a_network_does_not_change_what_the_weight_means():
    def volumes(width: int, size: int) -> list[float]:
        net = nn.Sequential(nn.Conv2d(1, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, width))
        nn.init.constant_(net[0].weight, 0.3)
        nn.init.eye_(net[3].weight)
        return [float(v.detach()) for v in guided(net, 1, size, size).volumes() if v is not None]

    assert volumes(4, 8) == pytest.approx(volumes(32, 20), abs=1e-5)


def test_depthwise_transposed_and_traced_layers_are_guided():
    net = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, padding=1), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, 2), nn.ReLU())
    traced = trace(net, (torch.zeros(1, 3, 8, 8),))
    one, other = guided(net, 3, 8, 8), guided(traced, 3, 8, 8)
    assert [positions for _, positions in one.convolutions] == [64, 64]  # of a transposed one those of its input
    assert torch.equal(one.reward(), other.reward())
    other.reward().backward()
    first, second = traced.get_submodule("0").weight.grad, traced.get_submodule("2").weight.grad
    assert bool((first[:, :, 0, 0] != 0).all()) and not first[:, :, 1:].any()
    assert bool((second[:, :, 0, 0] != 0).all()) and not second[:, :, 1].any()


def test_what_has_no_such_layer_is_not_guided_and_has_no_volume():
    assert guidance(nn.ReLU(), lambda: None) is None
    assert log_volume(nn.ReLU()) is None


@pytest.mark.parametrize("weight", [0.05, -0.05])
def test_training_moves_the_volume_where_the_weight_asks_for_it(weight):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))
    data = open_data("digits")
    settings = {"epochs": 2, "batch_size": 64, "lr": 1e-2, "distill": 0.0}
    free, pulled = (train(net, data, make(**settings, entropy_guidance=w)) for w in (0.0, weight))
    before, after = (float(guided(found.module, 1, 8, 8).reward().detach()) for found in (free, pulled))
    assert (after - before) * weight > 0
    assert any("Entropy guidance" in note for note in pulled.notes) and not any("Entropy guidance" in n for n in free.notes)
    assert pulled.history[-1].quality > 0.5  # it still learns


def test_analyze_tells_the_volume_of_the_layers_that_make_the_channels(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.ReLU(), nn.Linear(8, 10))
    with torch.no_grad():
        net[0].weight.fill_(0.5)
        net[3].weight.copy_(3 * torch.eye(8, 144))
    torch.save(net, tmp_path / "net.pt")
    rows = {row.layer: row for row in analyze(tmp_path / "net.pt", data="digits", calibration=64, timed=False, device="cpu")}
    assert rows["0"].log_volume == pytest.approx(math.log(0.5), abs=1e-6)
    assert rows["3"].log_volume == pytest.approx(math.log(3), abs=1e-6)
