"""What single channels are worth: by the states of their activations, by their filters, by chance."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from compress.artifact import Artifact, apply
from compress.data import from_arrays
from compress.edits import Plan
from compress.errors import UnsupportedModel
from compress.graph.channels.solve import solve
from compress.graph.trace.trace import trace
from compress.recipe import make
from compress.selection.budget import removable
from compress.selection.choice import _what_goes
from compress.selection.scores import SCORES
from compress.stage import Context
from compress.stages.remove import Remove

INPUT = (torch.zeros(1, 3, 6, 6),)
OFF, ON, RARE = 2, 5, 0


def context(net: nn.Module, **settings: object) -> Context:
    images = np.random.default_rng(0).standard_normal((64, 3, 6, 6)).astype(np.float32)
    labels = np.arange(64) % 4
    data = from_arrays({"x_train": images, "y_train": labels, "x_test": images, "y_test": labels})
    return Context(Artifact(trace(net.eval(), INPUT), INPUT), data, make(epochs=0, **settings), torch.device("cpu"))


def planted() -> nn.Sequential:
    """Channels of known states behind the first convolution: always off, always on, seldom on; the others switch."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )
    with torch.no_grad():
        for channel, bias in ((OFF, -100.0), (ON, 100.0), (RARE, -1.5)):
            net[0].bias[channel] = bias
    return net


def test_the_state_of_a_rectifier_orders_channels_off_before_on_before_rare():
    told = context(planted())
    groups = removable(told.dense.module, solve(told.dense.module, told.dense.inputs))
    scores = SCORES["state-entropy"](told.dense, told, groups)
    (worth,) = scores.values()  # the second convolution has no activation behind it
    assert worth.argsort()[:3].tolist() == [OFF, ON, RARE]
    assert worth[OFF] == -1 and worth[ON] == 0 and 0 < worth[RARE] < worth.topk(5).values.min()


def test_channels_go_by_their_states_and_groups_without_stay_whole():
    told = context(planted(), target="params=0.6", method="state-entropy")
    edits, notes = Remove("state-entropy").decide(told.dense, told)
    (edit,) = edits
    assert edit.layer == "0" and OFF not in edit.keep and ON not in edit.keep
    assert any("1 groups stay whole because state-entropy finds nothing to measure behind them: 2." in note for note in notes)


def test_a_channel_that_is_always_off_goes_for_nothing():
    told = context(planted(), target="params=0.9", method="state-entropy", align=1)
    remove = Remove("state-entropy", counts={"0": 7})
    images = next(told.data.test.batches(64)).inputs
    without, refitted = apply(Plan(remove.decide(told.dense, told)[0]), told.dense), remove(told.dense, told)
    with torch.no_grad():
        wanted = told.dense.module(*images)
        torch.testing.assert_close(without.module(*images), wanted, atol=1e-5, rtol=1e-5)
        # A ridge shrinks a little; that inputs lie at 100 and vary by 0.1 must not matter.
        torch.testing.assert_close(refitted.module(*images), wanted, atol=2e-3, rtol=0)


def test_a_model_without_rectifiers_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    told = context(net, target="params=0.6", method="state-entropy")
    with pytest.raises(UnsupportedModel, match="finds nothing to measure behind them"):
        Remove("state-entropy").decide(told.dense, told)


@pytest.mark.parametrize("name", ["random", "magnitude", "taylor"])
def test_every_other_score_has_a_number_for_every_channel(name: str):
    told = context(planted())
    groups = removable(told.dense.module, solve(told.dense.module, told.dense.inputs))
    scores = SCORES[name](told.dense, told, groups)
    assert {g.name: g.channels for g in groups} == {group: len(worth) for group, worth in scores.items()}
    again = SCORES[name](told.dense, told, groups)
    assert all(torch.equal(scores[group], again[group]) for group in scores)


def test_what_goes_is_the_sum_of_the_least():
    assert _what_goes(torch.tensor([3.0, -1.0, 1.0])).tolist() == [4.0, 1.0, 0.0, 0.0]
