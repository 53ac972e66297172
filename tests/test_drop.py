"""How sure a loss of quality is: the paired interval, checked against what it must be and against how often it is right."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from compress.data import Batch
from compress.measure.drop import drop_interval
from compress.measure.intervals import beside_one
from compress.measure.quality import METRICS, Counted, count, evaluate


def counted(hits: np.ndarray) -> Counted:
    """Slices of one sample each: (hit, 1)."""
    column = torch.from_numpy(hits.astype(float))[:, None]
    return Counted(torch.cat([column, torch.ones_like(column)], 1), len(hits))


def test_models_that_agree_on_every_sample_may_differ_on_the_next():
    hits = np.random.default_rng(0).random(500) < 0.9
    low, high = drop_interval(METRICS["top1"], counted(hits), counted(hits)) or (0, 0)
    assert -low == high == pytest.approx(100 * 1.96**2 / (500 + 1.96**2), abs=0.001)  # Wilson's bound for 0 of 500
    low, high = drop_interval(METRICS["top1"], counted(hits[:3]), counted(hits[:3])) or (0, 0)
    assert high > 50  # of three samples


def test_an_answer_that_changed_is_a_loss_for_sure_where_none_can_be_won():
    """3 of 60 answers are not the dense model's: none lost is impossible, and a bootstrap's percentiles would hold it."""
    dense, now = np.ones(60, dtype=bool), np.arange(60) >= 3
    assert drop_interval(METRICS["agreement"], counted(dense), counted(now)) == pytest.approx((1.71, 13.70), abs=0.01)  # Wilson
    # Of labels some may be won, too: 3 lost and none won happens to equal models once in four.
    low, high = drop_interval(METRICS["top1"], counted(dense), counted(now)) or (0, 0)
    assert low < 0 < high
    low, high = drop_interval(METRICS["agreement"], counted(dense), counted(dense)) or (1, 0)
    assert low == 0 and high == pytest.approx(6.02, abs=0.01)


def test_the_interval_is_that_of_the_samples_that_differ():
    """b samples lost and c won of n: the difference has the standard error sqrt(b + c - (b - c)^2 / n) / n."""
    dense = np.ones(4000, dtype=bool)
    dense[:400] = False
    now = dense.copy()
    now[400:460], now[:20] = False, True  # 60 lost, 20 won: one point
    low, high = drop_interval(METRICS["top1"], counted(dense), counted(now)) or (0, 0)
    error = 100 * math.sqrt(80 - 40**2 / 4000) / 4000
    assert low == pytest.approx(1 - 1.96 * error, abs=0.03) and high == pytest.approx(1 + 1.96 * error, abs=0.03)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    random, held = np.random.default_rng(1), 0
    for number in range(30):
        dense = random.random(400) < 0.9
        now = dense & (random.random(400) > 0.05)  # loses 4.5 points of whatever population
        low, high = drop_interval(METRICS["top1"], counted(dense), counted(now), seed=number) or (0, 0)
        held += low <= 4.5 <= high
    assert held >= 26, held  # 28.5 are expected; fewer than 26 happen less than once in fifty


def test_less_is_better_turns_the_sign():
    error = Counted(torch.tensor([[1.0, 1.0], [2.0, 1.0]]).double(), 2)
    worse = Counted(torch.tensor([[2.0, 1.0], [3.0, 1.0]]).double(), 2)
    assert drop_interval(METRICS["mae"], error, worse) == (1.0, 1.0)


def test_one_slice_says_nothing_and_other_samples_are_refused():
    one = Counted(torch.ones(1, 2).double(), 7)
    assert drop_interval(METRICS["top1"], one, one) is None
    with pytest.raises(ValueError, match="same samples"):
        drop_interval(METRICS["top1"], one, Counted(torch.ones(2, 2), 7))


@pytest.mark.parametrize("name", ["top1", "agreement", "mae", "psnr"])
def test_counting_in_slices_gives_the_same_value(name: str):
    torch.manual_seed(0)
    outputs, metric = torch.randn(37, 5), METRICS[name]
    target = torch.randint(0, 5, (37,)) if metric.labels else torch.randn(37, 5)
    batches = [Batch((outputs[:20],), target[:20]), Batch((outputs[20:],), target[20:])]
    whole = evaluate(torch.nn.Identity(), batches, metric, teacher=torch.nn.Identity())
    sliced = count(torch.nn.Identity(), batches, metric, teacher=torch.nn.Identity(), slices=8)
    assert len(sliced.slices) == (37 if metric.best else 16) and sliced.samples == 37
    assert metric.finish(sliced.slices.sum(0)) == pytest.approx(whole.value, rel=1e-6)  # sums of fp32 in another order


def test_the_end_of_an_interval_is_never_told_as_one_where_it_is_not():
    assert [beside_one(value) for value in (0.83, 0.998, 0.99996, 1.0, 1.004, 1.2345)] == [
        "0.83", "0.998", "0.99996", "1.00", "1.004", "1.23",
    ]  # fmt: skip


def test_a_single_sample_that_is_lost_is_no_loss_of_nothing():
    dense, now = (Counted(torch.tensor([[hit, 1.0]], dtype=torch.float64), 1) for hit in (1.0, 0.0))
    low, high = drop_interval(METRICS["agreement"], dense, now) or (0.0, 0.0)
    assert 15 < low < 30 and high == 100
