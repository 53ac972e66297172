"""Norms are folded before a converter takes a model: which of them, and that the model stays what it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import symbolic_trace

from exporters.folded import folded


def norm() -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(4)
    with torch.no_grad():
        for values in (made.weight, made.bias, made.running_mean, made.running_var):
            assert values is not None
            values.copy_(torch.rand(4) + 0.5)
    return made


class Net(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), norm(), nn.ReLU())
        self.conv, self.norm, self.again = nn.Conv2d(4, 4, 1), norm(), norm()

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        match self.how:
            case "plain":
                return self.norm(self.conv(x))
            case "read twice":
                y = self.conv(x)
                return self.norm(y) + y
            case "called twice":
                return self.again(self.conv(self.norm(self.conv(x))))
            case _:  # the norm is first
                return self.conv(self.norm(x))


@pytest.mark.parametrize(("how", "left"), [("plain", 0), ("read twice", 1), ("called twice", 2), ("first", 1)])
def test_what_only_a_convolution_reaches_is_folded(how: str, left: int):
    traced = symbolic_trace(Net(how).eval())
    before: Any = copy.deepcopy(traced)
    made = folded(traced)
    assert sum(isinstance(part, nn.BatchNorm2d) for part in made.modules()) == left
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = traced(x)
        # Scales are multiplied before the sum over 27 inputs and not behind it.
        assert torch.allclose(made(x), expected, atol=1e-6 * float(expected.abs().max()), rtol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(traced.state_dict().values(), before.state_dict().values(), strict=True))
    assert str(traced.graph) == str(before.graph)


def test_other_models_and_norms_without_statistics_stay():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert folded(net) is net
    assert any(isinstance(part, nn.BatchNorm2d) for part in folded(symbolic_trace(net)).modules())
