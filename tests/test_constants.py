"""A channel that the weights prove constant goes without a trace where a bias can say what it said."""

import copy

import pytest
import torch
import torch.nn.functional as F
from models import MODELS, Net, block, conv, head, random_model
from oracles import distance, outputs, random_edits
from torch import nn

from compress.artifact import Artifact, apply
from compress.edits import Keep, Plan
from compress.graph.channels.solve import solve
from compress.graph.surgery.constant_channels import fold
from compress.graph.trace.trace import trace

SAME = 1e-5
"""Relative: a constant is added once, in float32, instead of once per position."""
DEAD = (1, 4, 6)


def killed(model, *norms):
    """Channels 1, 4 and 6 of these norms become constants: gamma is 0, beta is not."""
    for name in norms:
        norm = model.get_submodule(name)
        with torch.no_grad():
            norm.weight[list(DEAD)] = 0.0
            norm.bias[list(DEAD)] = torch.tensor([0.7, -0.4, 0.9])
    return model


def without_dead(layer, channels=8):
    return Plan((Keep(layer, channels, tuple(i for i in range(channels) if i not in DEAD)),))


def artifact(model, shape=(3, 8, 8)):
    x = torch.randn(1, *shape)
    return Artifact(trace(model.eval(), (x,)), (x,))


def image():
    return [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))]


def pointwise():
    return nn.Sequential(block(3, 8), nn.MaxPool2d(2), nn.Conv2d(8, 6, 1, bias=False), nn.ReLU(), head(6))


def unpadded():
    return nn.Sequential(block(3, 8), nn.Conv2d(8, 6, 3), nn.ReLU(), head(6))


def to_linear():
    return nn.Sequential(block(3, 8), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32, 5, bias=False))


def through_depthwise():
    return nn.Sequential(
        block(3, 8), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.Hardswish(), nn.Conv2d(8, 6, 1), head(6)
    )


def joined():
    return Net(
        lambda s, x: (lambda y: s.last(torch.cat([F.gelu(y) * 2.0, y.mean((2, 3), keepdim=True).expand_as(y)], 1)))(s.stem(x)),
        stem=block(3, 8),
        last=nn.Conv2d(16, 6, 1),
    )


def pooled_by_function():
    return Net(lambda s, x: s.last(F.max_pool2d(s.stem(x), 2)), stem=block(3, 8), last=nn.Conv2d(8, 6, 1))


@pytest.mark.parametrize("make", [pointwise, unpadded, to_linear, through_depthwise, joined, pooled_by_function])
def test_removing_constant_channels_changes_nothing(make):
    torch.manual_seed(0)
    stem = "stem" if isinstance(net := make(), Net) else "0"
    dense, layer = artifact(killed(net, f"{stem}.1")), f"{stem}.0"
    small = apply(without_dead(layer), dense)
    assert small.module.get_submodule(layer).out_channels == 5
    assert distance(outputs(small.module, image()), outputs(dense.module, image())) < SAME
    assert small.notes == ("The constants of removed channels went into the biases of 1 layer, exactly.",)
    # Without the folding the difference is there to be seen.
    alive = Keep(layer, 8, tuple(i for i in range(8) if i not in (0, 2, 3)))
    assert distance(outputs(apply(Plan((alive,)), dense).module, image()), outputs(dense.module, image())) > 100 * SAME


def test_a_filter_of_zeros_is_a_constant():
    torch.manual_seed(0)
    model = nn.Sequential(conv(3, 8), nn.Sigmoid(), nn.Conv2d(8, 6, 1), head(6))
    with torch.no_grad():
        model[0].weight[list(DEAD)] = 0.0
    dense = artifact(model)
    assert distance(outputs(apply(without_dead("0"), dense).module, image()), outputs(dense.module, image())) < SAME


def test_what_is_always_off_goes_without_a_word():
    torch.manual_seed(0)
    model = killed(nn.Sequential(block(3, 8), conv(8, 6), head(6)), "0.1")
    with torch.no_grad():
        model[0][1].bias[list(DEAD)] = -0.5
    dense = artifact(model)
    small = apply(without_dead("0.0"), dense)
    assert distance(outputs(small.module, image()), outputs(dense.module, image())) < SAME
    assert small.notes == ()


@pytest.mark.parametrize("reader", [conv(8, 6), nn.ConvTranspose2d(8, 6, 2, stride=2)])
def test_what_differs_from_place_to_place_is_not_folded_and_that_is_said(reader):
    torch.manual_seed(0)
    dense = artifact(killed(nn.Sequential(block(3, 8), reader, head(6)), "0.1"))
    small = apply(without_dead("0.0"), dense)
    assert len(small.notes) == 1 and "in front of 1, where their part differs" in small.notes[0]
    assert torch.equal(small.module.get_submodule("1").bias, dense.module.get_submodule("1").bias)


def test_a_residual_sum_is_constant_only_where_both_sides_are():
    torch.manual_seed(0)
    make = lambda: Net(  # noqa: E731
        lambda s, x: (lambda y: s.last(F.relu(y + s.branch(y))))(s.stem(x)),
        stem=block(3, 8),
        branch=block(8, 8, 1),
        last=nn.Conv2d(8, 6, 1),
    )
    both = artifact(killed(make(), "stem.1", "branch.1"))
    one = artifact(killed(make(), "stem.1"))
    small = apply(without_dead("stem.0"), both)
    assert distance(outputs(small.module, image()), outputs(both.module, image())) < SAME
    changed, notes = fold(one.module, solve(one.module, one.inputs), without_dead("stem.0").edits, one.inputs)
    # branch reads the stem alone, whose channels are constant; the sum is not.
    assert notes and torch.equal(changed.get_submodule("last").bias, one.module.get_submodule("last").bias)
    assert not torch.equal(changed.get_submodule("branch.0").weight, one.module.get_submodule("branch.0").weight)


@pytest.mark.parametrize("name", MODELS)
def test_folding_never_changes_what_a_model_computes(name):
    model, inputs = random_model(name)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for m in model.modules():
            weight = getattr(m, "weight", None)
            if isinstance(m, nn.modules.batchnorm._NormBase | nn.Conv2d | nn.Linear) and isinstance(weight, nn.Parameter):
                weight[torch.rand(len(weight), generator=random) < 0.5] = 0.0
    dense = trace(model, inputs)
    channels = solve(dense, inputs)
    before = copy.deepcopy(dense.state_dict())
    folded, _ = fold(dense, channels, random_edits(channels.removable, 0, 0.6), inputs)
    x = [torch.randn(2, *shape) for shape in MODELS[name].shapes]
    assert distance(outputs(folded, x), outputs(dense, x)) < SAME
    assert all(torch.equal(before[k], v) for k, v in dense.state_dict().items())


def test_a_model_without_constants_is_given_back_untouched():
    model, inputs = random_model("residual")
    dense = trace(model, inputs)
    channels = solve(dense, inputs)
    assert fold(dense, channels, random_edits(channels.removable, 0), inputs) == (dense, ())
