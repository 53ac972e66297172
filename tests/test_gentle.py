"""Activations that become lines little by little: from the model that it was to the lines alone."""

from __future__ import annotations

import itertools

import pytest
import torch
from models import block, conv, head
from torch import nn

from compress.artifact import Artifact, apply
from compress.data import Data, open_data
from compress.edits import Linearize, Plan
from compress.graph.channel_affine import ChannelAffine
from compress.graph.linearize import linearize
from compress.graph.trace.trace import trace
from compress.recipe import make
from compress.stage import Context
from compress.stages.finetune import Finetune
from compress.training import loop as loops
from compress.training.gradual_linearize import Blend, advance, blended, settled

IMAGE = (torch.zeros(1, 1, 8, 8),)


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits")


def pair(act=nn.ReLU):
    """A model, and the same with lines in place of its two activations."""
    torch.manual_seed(0)
    dense = trace(nn.Sequential(block(1, 8, act=act), conv(8, 6), nn.GELU(), head(6, 10)).eval(), IMAGE)
    edits = [
        Linearize(path, c, tuple(torch.rand(c).tolist()), tuple(torch.randn(c).tolist())) for path, c in (("0.2", 8), ("2", 6))
    ]
    return dense, linearize(dense, edits)


def image():
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_it_begins_as_the_dense_model_and_ends_as_the_lines():
    dense, straight = pair(lambda: nn.ReLU(inplace=True))
    model, x = blended(straight, dense), image()
    with torch.no_grad():
        torch.testing.assert_close(model(x), dense(x))
        advance(model, 1.0)
        torch.testing.assert_close(model(x), straight(x))
        assert torch.equal(settled(model)(x), straight(x))
    assert not any(isinstance(m, Blend) for m in model.modules())
    assert list(model.state_dict()) == list(straight.state_dict())
    assert isinstance(straight.get_submodule("2"), ChannelAffine) and isinstance(dense.get_submodule("2"), nn.GELU)


def test_halfway_is_the_mean_of_both():
    blend, x = Blend(nn.ReLU(), ChannelAffine(3)), torch.randn(2, 3, 4, 4)
    blend.advance(0.375)  # half of the three quarters over which it moves
    torch.testing.assert_close(blend(x), (x.relu() + x) / 2)
    shares = []
    for share in (0.0, 0.2, 0.4, 0.6, 0.75, 1.0):
        blend.advance(share)
        shares.append(float(blend.t))
    assert shares == sorted(shares) and shares[0] == 0 and shares[-2:] == [1, 1]


def test_slopes_that_no_longer_fit_leave_the_line_alone():
    dense, straight = pair(lambda: nn.PReLU(8))
    dense.get_submodule("0.2").weight = nn.Parameter(torch.ones(12))
    model = blended(straight, dense)
    assert isinstance(model.get_submodule("0.2"), ChannelAffine) and isinstance(model.get_submodule("2"), Blend)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_fine_tuning_ends_with_lines_and_measures_what_is_left(digits, monkeypatch, ema):
    dense, straight = pair()
    steps, measured = [], []
    step, count = loops._step, loops.quality.count
    monkeypatch.setattr(loops, "_step", lambda loop, batch: (steps.append(times(loop.student)), step(loop, batch))[1])
    monkeypatch.setattr(loops.quality, "count", lambda m, *rest: (measured.append(times(m)), count(m, *rest))[1])
    recipe = make(epochs=2, batch_size=128, linearize="gradual", device="cpu", ema=ema)
    context = Context(Artifact(dense, IMAGE), digits, recipe, torch.device("cpu"))
    tuned = Finetune()(Artifact(straight, IMAGE), context).module
    assert steps[0] == [0, 0] and steps[-1] == [1, 1]
    assert all(a[0] <= b[0] for a, b in itertools.pairwise(steps)) and 0.3 < steps[len(steps) * 3 // 8][0] < 0.7
    assert len(measured) >= 3 and measured == [[1, 1]] * len(measured)  # before, after each epoch, and where harm is looked for
    assert isinstance(tuned.get_submodule("0.2"), ChannelAffine) and isinstance(tuned.get_submodule("2"), ChannelAffine)
    assert not torch.equal(tuned.get_submodule("2").slope, straight.get_submodule("2").slope)


def times(model):
    return [float(m.t) for m in model.modules() if isinstance(m, Blend)]


def test_other_fine_tuning_blends_nothing(digits):
    dense, straight = pair()
    context = Context(Artifact(dense, IMAGE), digits, make(epochs=0.2, device="cpu"), torch.device("cpu"))
    assert isinstance(Finetune()(Artifact(straight, IMAGE), context).module.get_submodule("2"), ChannelAffine)


def test_an_identity_stays_one():
    dense, _ = pair()
    plain = apply(Plan((Linearize("2", 6),)), Artifact(dense, IMAGE)).module
    assert not times(blended(plain, dense))
