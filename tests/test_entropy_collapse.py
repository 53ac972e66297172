"""The pruning budget that lets layers collapse."""

from __future__ import annotations

import math

import pytest
import torch

from compress.entropy.collapse import budgets, layer_entropy, smallest


def test_the_mean_leaves_out_channels_that_never_switch():
    assert layer_entropy(torch.tensor([0.0, 0.5, 1.0])) == 0.75
    assert layer_entropy(torch.zeros(3)) == 0.0


def test_a_budget_by_hand():
    weights = [torch.full((10,), 0.5), torch.full((20,), 1.0), torch.full((30,), 1.0)]
    entropies = [0.8, 0.9, 1.0]
    importance = [0.4, 0.9, 1.0]
    share = [math.exp(sum(importance) / i) for i in importance]
    first = 12 * share[0] / sum(share)
    assert first > 10, "the first layer cannot take its share"
    rest = [math.exp(1.9 / i) for i in importance[1:]]
    assert budgets(entropies, weights, 12 / 60) == [10, int(2 * rest[0] / sum(rest)), int(2 * rest[1] / sum(rest))]


def test_linear_and_empty_layers_take_no_part():
    weights = [torch.ones(8), torch.zeros(8), torch.ones(8)]
    assert budgets([0.0, 0.5, 0.5], weights, 0.5) == [0, 0, 4]
    assert budgets([0.0, 0.0, 0.0], weights, 0.5) == [0, 0, 0]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_the_budget_is_spent_and_no_layer_loses_more_than_it_has(share: float):
    torch.manual_seed(0)
    weights = [torch.randn(n) for n in (50, 500, 5, 200)]
    found = budgets([0.3, 0.9, 0.1, 0.6], weights, share)
    assert all(0 <= n <= len(w) for n, w in zip(found, weights, strict=True))
    assert share * 755 - len(weights) <= sum(found) <= share * 755 + 1e-9


def test_the_smallest_go_and_zeros_stay_gone():
    weight = torch.tensor([[0.0, -3.0], [0.5, 2.0]])
    assert smallest(weight, 1).tolist() == [[False, True], [False, True]]
    assert smallest(weight, 0).tolist() == [[False, True], [True, True]]
    assert not smallest(weight, 3).any()
