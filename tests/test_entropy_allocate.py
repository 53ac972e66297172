"""One budget over several groups."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import compress
from compress.edits import Keep
from compress.entropy.allocate import EACH, MOST, CostModel, allocate, by_depth, choices, envelope, lowest, tolerated, uniform


def chain(*widths: int) -> CostModel:
    """Parameters of linear layers 4 -> w1 -> w2 -> ... -> 3, a group per width."""
    axes = [(4.0, {}), *((0.0, {g: 1.0}) for g in range(len(widths))), (3.0, {})]
    return CostModel.of(7.0, [(1.0, [out, into]) for into, out in pairwise(axes)])


def curve(channels: int, scale: float) -> torch.Tensor:
    return scale * torch.linspace(1, 0, channels + 1, dtype=torch.float64) ** 2


def test_the_cost_is_the_product_of_neighboring_sizes():
    model = chain(10, 20)
    assert model(np.array([10.0, 20.0])) == 7 + 4 * 10 + 10 * 20 + 20 * 3
    saved = model.saved(np.array([10.0, 20.0]), np.array([1.0, 2.0]))
    assert saved.tolist() == [4 + 20, 20 + 6]


def test_what_groups_do_not_touch_is_not_held():
    model = chain(*[4] * 2000)
    assert model.per_channel.size == 4000
    assert model.saved(np.full(2000, 4.0), np.ones(2000))[1:-1].tolist() == [8.0] * 1998


def test_a_uniform_share_is_the_largest_that_fits_and_else_the_smallest_there_is():
    model = chain(8, 16)
    assert uniform([8, 16], model, model(np.array([4.0, 8.0]))).counts == (4, 8)
    assert uniform([8, 16], model, 0.0).counts == (1, 1)


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_the_target_is_kept_and_hit_within_two_percent(share: float):
    model = chain(64, 128, 64)
    whole = model(np.array([64.0, 128, 64]))
    found = allocate([curve(64, 1), curve(128, 1), curve(64, 1)], model, share * whole)
    assert 0.98 * share * whole <= found.cost <= share * whole


def test_channels_go_where_they_are_worth_least():
    found = allocate([curve(64, 100), curve(64, 1)], chain(64, 64), 2000)
    assert found.counts[0] > 2 * found.counts[1]


def test_counts_are_aligned_and_never_zero():
    model = chain(60, 64)
    found = allocate([curve(60, 1), curve(64, 1)], model, 900, align=8)
    assert all(n % 8 == 0 or n == 60 for n in found.counts) and min(found.counts) >= 8
    assert lowest([60, 4], 8).tolist() == [8, 4]
    assert choices(20, 8) == [8, 16, 20]


def test_a_target_below_the_fewest_channels_is_refused():
    with pytest.raises(ValueError, match="below"):
        allocate([curve(8, 1)], chain(8), 5)


def test_the_envelope_is_convex_and_below_the_curve():
    losses = torch.tensor([10.0, 9, 2, 2.5, 1.9, 0])
    corners = envelope(losses, [1, 2, 3, 4, 5])
    assert corners[0] == (1, 9) and corners[-1] == (5, 0)
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(corners)]
    assert slopes == sorted(slopes)


def test_uniform_takes_the_largest_share_that_fits():
    model = chain(10, 20)
    found = uniform([10, 20], model, model(np.array([5.0, 10.0])))
    assert found.counts == (5, 10)


@pytest.mark.parametrize("share", [0.9, 0.55, 0.39, 0.2])
def test_a_uniform_share_of_groups_of_one_width_hits_the_target_within_a_step(share: float):
    widths = [16] * 5
    model = chain(*widths)
    target = share * model(np.array(widths, dtype=float))
    found = uniform(widths, model, target)
    assert max(found.counts) - min(found.counts) <= 1 and found.cost <= target
    more = [model(np.array(found.counts) + np.eye(5)[g]) for g in range(5) if found.counts[g] == min(found.counts)]
    assert min(more) > target


def test_a_tolerance_keeps_the_fewest_channels_within_it():
    assert tolerated([curve(10, 3.0)], 0.011) == (9,)
    assert tolerated([curve(10, 3.0)], 0.5) == (3,)
    assert tolerated([curve(10, 3.0)], 0.01, align=8) == (10,)


def test_a_step_that_goes_far_below_the_target_is_left_to_groups_of_small_steps():
    # One group of two heads that cost 40 each, cheap to lose; one of 20 channels that cost 1 each.
    cost = CostModel.of(0.0, [(40.0, [(0.0, {0: 1.0})]), (1.0, [(0.0, {1: 1.0})])])
    curves = [torch.tensor([9.0, 1.0, 0.0]), torch.linspace(4, 0, 21)]
    split = allocate(curves, cost, 90.0)
    assert split.counts == (2, 10) and split.cost == 90.0


def test_losses_near_the_end_weigh_more_by_as_much_as_there_are_groups_in_front():
    one, few, many = by_depth(1), by_depth(4), by_depth(100)
    assert list(one) == [1.0] and few[0] == many[0] == 1.0
    assert few[-1] == pytest.approx(math.exp(3 * EACH)) and many[-1] == pytest.approx(math.exp(MOST))
    assert (np.diff(many) > 0).all()


def test_a_removal_leaves_more_near_the_end_the_more_losses_there_weigh(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    model, images = (
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval(),
        torch.randn(80, 3, 12, 12),
    )

    def left() -> dict[str, int]:
        plan = compress.remove(model, (images, None), target="macs=0.5", align=1, calibration=60).plan
        return {edit.layer: len(edit.keep) for edit in plan.edits if isinstance(edit, Keep)}

    found = []
    for each in (0.0, 8.0):
        monkeypatch.setattr("compress.entropy.allocate.EACH", each)
        monkeypatch.setattr("compress.entropy.allocate.MOST", 2 * each)
        found.append(left())
    alike, weighed = found
    assert weighed.get("4", 8) > alike.get("4", 8) and weighed.get("0", 8) < alike.get("0", 8)
