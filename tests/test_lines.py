"""Lines in place of activations: which activations there are, what stands there afterwards, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from models import Branches, Net, block, conv, head
from oracles import distance, outputs
from torch import nn

from compress.artifact import Artifact, apply
from compress.checkpoint.deserialize import from_json
from compress.checkpoint.serialize import to_json
from compress.edits import Keep, Linearize, Plan
from compress.errors import PlanMismatch
from compress.graph.channel_affine import ChannelAffine, channel_affine
from compress.graph.linearize import activations, linearize
from compress.graph.trace.trace import trace

SAME = 1e-5
"""Relative: the same sums in another order, in float32."""
IMAGE = (torch.zeros(1, 3, 8, 8),)


def traced(model, inputs=IMAGE):
    return trace(model.eval(), inputs)


def images(shape=(2, 3, 8, 8)):
    return [torch.randn(shape, generator=torch.Generator().manual_seed(1))]


def numbers(channels, seed=0):
    random = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(channels, generator=random).tolist()), tuple(torch.randn(channels, generator=random).tolist())


class Shared(nn.Module):
    """One activation module, called at two places."""

    def __init__(self, act):
        super().__init__()
        self.one, self.two, self.act, self.head = conv(3, 8), conv(8, 8), act, head(8)

    def forward(self, x):
        return self.head(self.act(self.two(self.act(self.one(x)))))


# ---- what a line computes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "axis", "letters"), [((2, 3), 1, "nc"), ((2, 3, 4, 5), 1, "nchw"), ((2, 4, 3), -1, "ntc")])
def test_a_line_is_slope_times_input_plus_offset_of_each_channel(shape, axis, letters):
    x, slope, offset = torch.randn(shape), torch.randn(3), torch.randn(3)
    ones = torch.ones(shape)
    expected = torch.einsum(f"{letters},c->{letters}", x, slope) + torch.einsum(f"{letters},c->{letters}", ones, offset)
    torch.testing.assert_close(channel_affine(slope, offset, axis)(x), expected)


def test_a_new_line_is_the_identity_and_can_be_trained():
    x = torch.randn(2, 3, 4, 4)
    fresh = ChannelAffine(3)
    assert torch.equal(fresh(x), x)
    fresh(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == (3,) and p.grad.abs().min() > 0 for p in fresh.parameters())


@pytest.mark.parametrize(("channels", "axis"), [(3, 0), (3, 2), (0, 1)])
def test_a_line_without_channels_or_on_another_axis_is_refused(channels, axis):
    with pytest.raises(ValueError, match="axis 1 or -1"):
        ChannelAffine(channels, axis)


# ---- where lines can stand -------------------------------------------------------------------------------------------------


def test_sites_come_in_graph_order_with_the_axis_of_their_channels():
    images_first = nn.Sequential(block(3, 8), conv(8, 8), nn.Hardswish(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.GELU())
    assert [(s.path, s.axis) for s in activations(traced(images_first))] == [("0.2", 1), ("2", 1), ("5", 1)]
    tokens = Net(
        lambda s, x: torch.relu(s.mlp(x) + s.other(x)),
        mlp=nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 6), nn.Dropout(), nn.GELU(), nn.Linear(6, 8)),
        other=nn.Linear(8, 8),
    )
    assert [(s.path, s.axis, s.refused) for s in activations(traced(tokens, (torch.zeros(1, 5, 8),)))] == [
        ("mlp.3", -1, None),
        ("relu", -1, None),
    ]


def test_a_gate_is_no_site():
    assert activations(traced(nn.Sequential(conv(3, 8), nn.Sigmoid(), conv(8, 8), nn.Tanh(), head(8)))) == ()


def test_a_rectifier_that_is_called_twice_is_two_sites():
    model = Shared(nn.ReLU(inplace=True))
    module = traced(model)
    assert [s.path for s in activations(module)] == ["act", "act_1"]
    assert not any(s.refused for s in activations(module))
    assert torch.equal(module(*images()), model.eval()(*images()))
    changed = linearize(module, [Linearize("act_1", 8)])
    assert isinstance(changed.act, nn.ReLU) and isinstance(changed.act_1, nn.Identity)
    assert list(module.state_dict()) == list(model.state_dict())
    # What is traced again, from a checkpoint say, has the same names.
    assert [s.path for s in activations(trace(from_json(to_json(module), module.state_dict()), IMAGE))] == ["act", "act_1"]


def test_calls_that_share_their_slopes_are_refused():
    module = traced(Shared(nn.PReLU(8)))
    reason = "it is called 2 times and has one set of slopes for all of them"
    assert [(s.path, s.refused) for s in activations(module)] == [("act", reason)]
    with pytest.raises(PlanMismatch, match=reason):
        linearize(module, [Linearize("act", 8)])


def test_a_rectifier_with_a_hook_is_refused():
    model = nn.Sequential(conv(3, 8), nn.ReLU(), head(8))
    model[1].register_forward_hook(lambda module, args, output: 2 * output)
    assert "has hooks" in activations(traced(model))[0].refused


def test_a_rectifier_inside_what_was_not_traced_is_refused_with_the_reason():
    class Inside(Branches):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

    found = activations(traced(nn.Sequential(conv(3, 8), Inside(), nn.ReLU(), head(8))))
    assert [s.path for s in found] == ["2", "1.act"]
    assert found[0].refused is None
    assert "it lies inside 1, which stays whole because it cannot be traced" in found[1].refused


def test_a_rectifier_that_overwrites_what_others_read_is_refused():
    def call(s, x):
        x = s.conv(x)
        y = s.act(x)
        return s.head(x + y)

    in_place = Net(call, conv=conv(3, 8), act=nn.ReLU(inplace=True), head=head(8))
    apart = Net(call, conv=conv(3, 8), act=nn.ReLU(), head=head(8))
    assert "works in place on a value that add reads, too" in activations(traced(in_place))[0].refused
    assert activations(traced(apart))[0].refused is None


# ---- what stands there afterwards ------------------------------------------------------------------------------------------


def test_linearizing_puts_the_lines_where_the_rectifiers_were():
    torch.manual_seed(0)
    module = traced(nn.Sequential(block(3, 8), nn.Conv2d(8, 6, 1), nn.GELU(), head(6)))
    before = copy.deepcopy(module.state_dict())
    slope, offset = numbers(8)
    changed = linearize(module, [Linearize("0.2", 8, slope, offset), Linearize("2", 6)])
    m, b = (torch.tensor(t).view(-1, 1, 1) for t in (slope, offset))
    part = module.get_submodule
    with torch.no_grad():
        y = part("0.1")(part("0.0")(images()[0])) * m + b
        y = part("3.2")(part("1")(y).mean((2, 3)))
    assert distance(outputs(changed, images()), [y]) < SAME
    assert isinstance(changed.get_submodule("2"), nn.Identity)
    assert isinstance(module.get_submodule("0.2"), nn.ReLU) and list(before) == list(module.state_dict())


def test_a_line_that_is_the_identity_everywhere_becomes_one():
    module = traced(nn.Sequential(conv(3, 8), nn.ReLU(), head(8)))
    one = linearize(module, [Linearize("1", 8, (1.0,) * 8, (0.0,) * 8)])
    other = linearize(module, [Linearize("1", 8, (1.0,) * 7 + (0.0,), (0.0,) * 8)])
    assert isinstance(one.get_submodule("1"), nn.Identity) and isinstance(other.get_submodule("1"), ChannelAffine)


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ([Linearize("9", 8)], "no activation of this model"),
        ([Linearize("0", 8)], "no activation of this model"),
        ([Linearize("1", 8), Linearize("1", 8)], "named twice"),
        ([Linearize("1", 7)], "expects 7 channels at 1, this model has 8"),
    ],
)
def test_a_plan_that_does_not_fit_the_model_is_refused(edits, said):
    with pytest.raises(PlanMismatch, match=said):
        linearize(traced(nn.Sequential(conv(3, 8), nn.ReLU(), head(8))), edits)


def test_a_model_with_lines_is_stored_without_its_class_and_stays_trainable():
    torch.manual_seed(0)
    module = traced(nn.Sequential(block(3, 8), conv(8, 6), nn.ReLU(), nn.Flatten(2), head_of_tokens()), IMAGE)
    changed = linearize(module, [Linearize("0.2", 8, *numbers(8)), Linearize("4.1", 5, *numbers(5))])
    again = from_json(to_json(changed, IMAGE), changed.state_dict())
    assert torch.equal(again(*images()), changed(*images()))
    assert again.get_submodule("0.2").slope.requires_grad and again.get_submodule("4.1").axis == -1
    assert torch.equal(trace(again, IMAGE)(*images()), changed(*images()))


def head_of_tokens():
    return nn.Sequential(nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 4))


# ---- channels that are always off ------------------------------------------------------------------------------------------


def dead_line(channels=8, dead=(1, 4, 6), offset=0.0):
    slope = tuple(0.0 if i in dead else 0.5 + i for i in range(channels))
    return Linearize("0.2", channels, slope, tuple(offset if i in dead else 0.1 for i in range(channels)))


def without(dead=(1, 4, 6), channels=8):
    return Keep("0.0", channels, tuple(i for i in range(channels) if i not in dead))


def test_a_channel_that_is_always_off_is_removed_exactly_and_without_a_word():
    torch.manual_seed(0)
    dense = Artifact(traced(nn.Sequential(block(3, 8), conv(8, 6), head(6))), IMAGE)
    lined = Artifact(linearize(dense.module, [dead_line()]), IMAGE)
    small = apply(Plan((without(),)), lined)
    assert small.module.get_submodule("0.2").channels == small.module.get_submodule("0.0").out_channels == 5
    assert distance(outputs(small.module, images()), outputs(lined.module, images())) < SAME
    assert small.notes == ()
    # Of a channel that lives, the difference is there to be seen.
    other = apply(Plan((without((0, 2, 3)),)), lined)
    assert distance(outputs(other.module, images()), outputs(lined.module, images())) > 100 * SAME


def test_a_line_of_slope_0_hands_its_offset_to_the_layers_that_read_it():
    torch.manual_seed(0)
    module = linearize(traced(nn.Sequential(block(3, 8), nn.Conv2d(8, 6, 1), head(6))), [dead_line(offset=0.7)])
    small = apply(Plan((without(),)), Artifact(module, IMAGE))
    assert distance(outputs(small.module, images()), outputs(module, images())) < SAME
    assert small.notes == ("The constants of removed channels went into the biases of 1 layer, exactly.",)
