"""Masked weights stay at zero through training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.data import open_data
from compress.recipe import make
from compress.training import train
from compress.training.masks import masked, unmasked


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_training_leaves_masked_weights_at_zero_and_moves_the_rest(optimizer: str):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
    mask = torch.rand(12, 64) > 0.5
    before = net[1].weight.detach().clone()
    held = masked(net, {"1": mask})
    recipe = make(epochs=1, lr=0.01, optimizer=optimizer, weight_decay=0.1, distill=0.0)
    trained = unmasked(train(held, open_data("digits"), recipe).module, net)
    assert torch.equal(net[1].weight, before)
    weight = trained.get_submodule("1").weight
    assert type(trained.get_submodule("1")) is nn.Linear and isinstance(weight, nn.Parameter)
    assert not weight[~mask].any()
    assert (weight[mask] != before[mask]).float().mean() > 0.9
    assert list(trained.state_dict()) == list(net.state_dict())
