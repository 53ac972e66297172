"""What could be merged is found, counted and, where it cannot be, told with the reason."""

from __future__ import annotations

import re
import time

import pytest
import torch
import torch.nn.functional as F
import torchvision
from models import Net, block, conv, head, randomise
from oracles import distance, outputs
from torch import nn

from compress.artifact import Artifact, apply
from compress.edits import Linearize, Merge, Plan, Relocate
from compress.graph.linearize import activations
from compress.graph.merge.chains import barriers, chains
from compress.graph.merge.segments import blocked, segments
from compress.graph.trace.trace import trace
from compress.measure.cost import cost

EXACT = 1e-9
"""Relative, in float64: the same products in another order."""


def traced(model, shape=(3, 8, 8)):
    randomise(model.eval())
    return trace(model, (torch.zeros(1, *shape),))


def residual(act=nn.ReLU):
    return Net(
        lambda s, x: s.head(s.last((lambda y: s.b(s.act(s.a(y))) + y)(s.stem(x)))),
        stem=block(3, 8),
        a=conv(8, 6),
        act=act(),
        b=nn.Sequential(conv(6, 8), nn.BatchNorm2d(8)),
        last=nn.ReLU(),
        head=head(8),
    )


# ---- chains ----------------------------------------------------------------------------------------------------------------


def test_a_chain_says_its_layers_the_rectifiers_between_them_and_where_it_ends():
    net = nn.Sequential(block(3, 8), block(8, 12), nn.AvgPool2d(2), nn.MaxPool2d(2), conv(12, 4), nn.ReLU(), conv(4, 4), head(4))
    first, second = chains(traced(net))
    assert first.steps == (("0.0",), ("1.0",), ("2",))
    assert first.activations == (("0.2",), ("1.2",))
    assert first.stops == "3 (MaxPool2d) is not linear"
    assert second.layers == ("4", "6", "7.2") and second.activations == (("5",), ())
    assert second.starts == "3 (MaxPool2d) is not linear" and second.stops == "output is the model's output"


def test_a_skip_span_is_one_step_and_its_branch_a_chain_of_its_own():
    whole, branch = chains(traced(residual()))
    assert whole.steps == (("stem.0",), ("a", "b.0", "add"), ("head.2",))
    assert whole.activations == (("stem.2",), ("last",)) and whole.starts == "x is the model's input"
    assert branch.steps == (("a",), ("b.0",)) and branch.activations == (("act",),) and branch.stops == "it ends in the sum"


def test_a_model_of_one_layer_has_no_chain():
    module = traced(nn.Sequential(conv(3, 4), nn.ReLU()))
    assert chains(module) == () and segments(module, (torch.zeros(1, 3, 8, 8),)) == ()


def test_a_model_without_noted_shapes_is_not_guessed_about():
    module = traced(residual())
    next(iter(module.graph.nodes)).meta.pop("shape")
    with pytest.raises(ValueError, match="call note_shapes first"):
        chains(module)


# ---- segments --------------------------------------------------------------------------------------------------------------


def carried_out(found, segment):
    """The model with everything in a segment linear and its padding moved, and the same merged."""
    shapes = {
        activation.path: (n.meta["shape"], activation.axis)
        for activation in activations(found.module)
        for n in found.module.graph.nodes
        if n.name == activation.node
    }
    lines = tuple(Linearize(activation, shapes[activation][0][shapes[activation][1]]) for activation in segment.activations)
    before = apply(Plan((*lines, *(Relocate(r) for r in segment.relocate))), found)
    return before, apply(Plan((Merge(segment.layers),)), before)


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (residual, (3, 8, 8)),
        (
            lambda: nn.Sequential(
                block(3, 8, stride=2), block(8, 12, groups=4), conv(12, 12, groups=12), nn.AvgPool2d(2), conv(12, 4)
            ),
            (3, 9, 9),
        ),
        (
            lambda: nn.Sequential(
                conv(3, 8, 1), nn.ReLU(), conv(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
            ),
            (3, 8, 8),
        ),
        (lambda: nn.Sequential(nn.Linear(6, 24), nn.GELU(), nn.Linear(24, 6), nn.GELU(), nn.Linear(6, 6)), (10, 6)),
        (lambda: nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.PReLU(4), nn.Conv1d(4, 5, 3, padding=1)), (3, 9)),
    ],
)
def test_every_exact_segment_can_be_carried_out_and_costs_what_it_says(net, shape):
    example = (torch.zeros(1, *shape),)
    found = Artifact(traced(net(), shape), (example[0].double(),))
    dense = cost(found.module, example)
    found.module.double()
    exact = [s for s in segments(found.module, found.inputs) if s.exact]
    assert exact
    for segment in exact:
        before, after = carried_out(found, segment)
        x = [torch.randn(2, *shape, dtype=torch.float64)]
        assert distance(outputs(after.module, x), outputs(before.module, x)) < EXACT, segment
        counted = cost(after.module.float(), example)
        assert dense.macs - counted.macs == segment.macs_before - segment.macs_after, segment
        assert dense.params - counted.params == segment.params_before - segment.params_after, segment


def test_what_pays_can_be_told_from_what_does_not():
    """Counted by hand: two 3x3 of equal widths take 18 C^2 and become a 5x5 with 25 C^2; 1x1, depthwise, 1x1 become 9 C^2."""
    twice = nn.Sequential(conv(8, 8, bias=False), nn.ReLU(), conv(8, 8, bias=False))
    (plain,) = segments(traced(twice, (8, 8, 8)), (torch.zeros(1, 8, 8, 8),))
    assert (plain.macs_before, plain.macs_after, plain.kernel) == (18 * 64 * 64, 25 * 64 * 64, (5, 5))
    inverted = nn.Sequential(conv(8, 48, 1), nn.ReLU6(), conv(48, 48, groups=48), nn.ReLU6(), conv(48, 8, 1))
    whole = next(s for s in segments(traced(inverted, (8, 8, 8)), (torch.zeros(1, 8, 8, 8),)) if len(s.layers) == 3)
    assert (whole.macs_before, whole.macs_after) == ((12 * 64 + 54 * 8) * 64, 9 * 64 * 64)
    assert whole.activations == ("1", "3") and whole.relocate == (("0", "2", "4"),)


def test_a_stretch_that_cannot_be_merged_is_told_once_with_the_reason():
    net = Net(
        lambda s, x: s.last(s.three((lambda y: s.two(s.one(y)) + y)(s.stem(x)))),
        stem=conv(3, 4),
        one=conv(4, 4),
        two=conv(4, 4, 1),
        three=conv(4, 4),
        last=conv(4, 4, 1),
    )
    found = {s.layers: s.reason for s in segments(traced(net), (torch.zeros(1, 3, 8, 8),))}
    stuck = "padding cannot move across the sum add"
    assert found["stem", "one", "two", "add"] == stuck == found["one", "two", "add", "three"]
    assert found["one", "two", "add"] is None and found["three", "last"] is None
    assert not any(layers[:1] == ("stem",) and len(layers) > 4 for layers in found)


def test_pools_alone_are_not_merged():
    net = nn.Sequential(nn.AvgPool2d(2), nn.AvgPool2d(2))
    (only,) = segments(traced(net), (torch.zeros(1, 3, 8, 8),))
    assert only.reason == "there is nothing but pools in it"


# ---- activations that are in no segment -------------------------------------------------------------------------------------


class Tied(nn.Module):
    """One convolution, called twice."""

    def __init__(self):
        super().__init__()
        self.one, self.relu, self.two = conv(3, 3), nn.ReLU(), conv(3, 4)

    def forward(self, x):
        return self.two(self.relu(self.one(self.one(x))))


class ByValue(nn.Module):
    """Cannot be traced: what it does depends on data."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = conv(4, 4), nn.ReLU()

    def forward(self, x):
        return self.act(self.conv(x)) if x.sum() > 0 else x


def excited(s, x):
    y = s.stem(x)
    return s.tail(y * s.gate(s.up(s.relu(s.down(s.pool(y))))))


BLOCKED = {
    "before max-pool": (
        nn.Sequential(conv(3, 4), nn.ReLU(), nn.MaxPool2d(2), conv(4, 4)),
        "1",
        r"behind it.*2 \(MaxPool2d\) is not linear",
    ),
    "at the output": (nn.Sequential(conv(3, 4), nn.ReLU()), "1", "behind it to merge with: output is the model's output"),
    "at the input": (nn.Sequential(nn.ReLU(), conv(3, 4)), "0", "before it to merge with: input_1 is the model's input"),
    "several readers": (
        Net(
            lambda s, x: (lambda y: torch.cat([s.b(y), s.c(y)], 1))(s.r(s.a(x))),
            a=conv(3, 4),
            r=nn.ReLU(),
            b=conv(4, 4),
            c=conv(4, 4),
        ),
        "r",
        "its result is read by b, c",
    ),
    "product": (
        Net(lambda s, x: (lambda y: s.r(y) * s.b(y))(s.a(x)), a=conv(3, 4), r=nn.SiLU(), b=conv(4, 4)),
        "r",
        "r shares its input with b",
    ),
    "gated": (Net(lambda s, x: s.r(s.a(x)) * x, a=conv(3, 3), r=nn.SiLU()), "r", "behind it to merge with: mul is a product"),
    "shared layer": (Tied(), "relu", "one cannot be changed: it is called 2 times"),
    "opaque": (nn.Sequential(conv(3, 4), ByValue()), "1.act", "lies inside 1, which stays whole because it cannot be traced"),
    "dilated": (
        nn.Sequential(conv(3, 4), nn.ReLU(), nn.Conv2d(4, 4, 3, dilation=2)),
        "1",
        r"2 has gaps in its window \(dilation\)",
    ),
    "reflected": (
        nn.Sequential(conv(3, 4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
        "1",
        "padding mode reflect",
    ),
    "lopsided": (
        nn.Sequential(conv(3, 4), nn.ReLU(), nn.Conv2d(4, 4, 2, padding="same")),
        "1",
        "more on one side than on the other",
    ),
    "rounded up": (nn.Sequential(conv(3, 4), nn.ReLU(), nn.AvgPool2d(3, 2, ceil_mode=True)), "1", "ceil_mode"),
    "border of a pool": (
        nn.Sequential(conv(3, 4), nn.ReLU(), nn.AvgPool2d(3, 2, 1, count_include_pad=False)),
        "1",
        "divides by fewer entries on the border",
    ),
    "batch statistics": (
        nn.Sequential(conv(3, 4), nn.ReLU(), nn.BatchNorm2d(4, track_running_stats=False), conv(4, 4)),
        "1",
        "has no running statistics",
    ),
    "positions": (nn.Sequential(conv(3, 4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)), "1", "puts positions beside each other"),
    "two sources": (
        Net(lambda s, x: s.c(s.r(s.a(x) + s.b(x.flip(1)))), a=conv(3, 4), b=conv(3, 4), r=nn.ReLU(), c=conv(4, 4)),
        "r",
        "add adds what comes from x and flip, not from one value",
    ),
    "broadcast": (
        Net(lambda s, x: s.c(s.r(s.b(s.a(x)) + x)), a=conv(3, 3), b=nn.Conv2d(3, 3, 8), r=nn.ReLU(), c=conv(3, 4)),
        "r",
        "add adds maps of different sizes",
    ),
}


@pytest.mark.parametrize("name", BLOCKED)
def test_a_rectifier_that_saves_no_layer_is_told_with_the_reason(name):
    net, activation, says = BLOCKED[name]
    found = blocked(traced(net))
    assert activation in found
    assert re.search(says, found[activation])


APART = {
    "window behind a mean": (
        nn.Sequential(conv(3, 4), nn.AdaptiveAvgPool2d(1), conv(4, 5, 1), conv(5, 2, 1)),
        {("2", "3")},
    ),
    "a map added to itself": (Net(lambda s, x: (lambda y: s.b(y + y))(s.a(x)), a=conv(3, 4), b=conv(4, 4, 1)), set()),
    "means added": (
        Net(lambda s, x: s.c(s.a(x).mean((2, 3)) + s.b(x).mean((2, 3))), a=conv(3, 4), b=conv(3, 4), c=nn.Linear(4, 2)),
        set(),
    ),
    "mean over channels": (Net(lambda s, x: s.b(s.a(x).mean((1, 2))), a=conv(3, 4), b=nn.Linear(8, 2)), set()),
    "flattened from the third axis": (
        nn.Sequential(conv(3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(2), nn.Linear(1, 4)),
        set(),
    ),
    "flattened by function": (
        Net(lambda s, x: s.b(torch.flatten(F.adaptive_avg_pool2d(s.a(x), 1), 2)), a=conv(3, 4), b=nn.Linear(1, 4)),
        set(),
    ),
    "four positions": (nn.Sequential(conv(3, 4), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 4)), set()),
    "called by name": (Net(lambda s, x: s.b(s.a(input=x)), a=conv(3, 4), b=conv(4, 4, 1)), set()),
    "in place onto what it reads": (
        Net(lambda s, x: (lambda y: s.c(y.add_(s.b(y))))(s.a(x)), a=conv(3, 4), b=conv(4, 4, 1), c=conv(4, 4, 1)),
        set(),
    ),
}


@pytest.mark.parametrize("name", APART)
def test_what_only_looks_like_a_chain_is_none(name):
    net, found = APART[name]
    assert {s.layers for s in segments(traced(net), (torch.zeros(1, 3, 8, 8),)) if s.exact} == found


def test_layers_on_different_axes_are_not_added():
    """A linear layer acts on the last axis, a convolution on the first; both maps are 6 by 6."""
    net = Net(lambda s, x: s.a(x) + s.b(x), a=nn.Linear(6, 6), b=nn.Conv1d(6, 6, 1))
    module = traced(net, (6, 6))
    assert segments(module, (torch.zeros(1, 6, 6),)) == ()
    assert barriers(module)["add"] == "adds maps with their channels on different axes"


def test_a_layer_with_a_hook_is_left_alone():
    module = traced(nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 4, 1)))
    module.get_submodule("2").register_forward_hook(lambda m, args, out: out * 2)
    assert blocked(module) == {"1": "no layer behind it to merge with: 2 has hooks, which may change what it computes"}


def test_maps_that_are_of_one_size_by_accident_are_not_added():
    """Both strides leave one position of two."""
    net = Net(lambda s, x: s.a(x) + s.b(x), a=conv(3, 4, 1, stride=2), b=conv(3, 4, 1, stride=3))
    (only,) = segments(traced(net, (3, 2, 2)), (torch.zeros(1, 3, 2, 2),))
    assert only.reason == "in add, strides (2, 2) and (3, 3) differ"


def test_only_those_rectifiers_are_told():
    module = traced(residual())
    assert blocked(module) == {"stem.2": "padding cannot move across the sum add"}


def test_squeeze_and_excitation_merges_inside_and_its_product_stands_in_the_way():
    net = Net(
        excited,
        stem=nn.Sequential(conv(3, 4), nn.SiLU()),
        pool=nn.AdaptiveAvgPool2d(1),
        down=conv(4, 2, 1),
        relu=nn.ReLU(),
        up=conv(2, 4, 1),
        gate=nn.Sigmoid(),
        tail=conv(4, 4),
    )
    module = traced(net)
    assert blocked(module) == {"stem.1": "no layer behind it to merge with: its result is read by pool, mul"}
    assert [s.layers for s in segments(module, (torch.zeros(1, 3, 8, 8),))] == [("down", "up")]


# ---- real models -----------------------------------------------------------------------------------------------------------


def shallow(name, size=64):
    """A torchvision model whose skip spans are linear inside, with their padding moved, and the merges that are left to do."""
    torch.manual_seed(0)
    found = Artifact(traced(getattr(torchvision.models, name)(), (3, size, size)), (torch.zeros(1, 3, size, size),))
    spans = [s for s in segments(found.module, found.inputs) if s.exact and [n[:3] for n in s.layers].count("add") == 1]
    spans = [s for s in spans if s.layers[-1].startswith("add")]
    sizes = {str(n.target): n.meta["shape"] for n in found.module.graph.nodes}
    lines = [Linearize(activation, sizes[activation][1]) for s in spans for activation in s.activations]
    moved = [Relocate(layers) for s in spans for layers in s.relocate]
    return apply(Plan((*lines, *moved)), found), Plan(tuple(Merge(s.layers) for s in spans))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "spans", "left"), [("resnet18", 8, 9), ("resnet50", 16, 17), ("mobilenet_v2", 10, 32)])
def test_every_block_of_a_real_model_is_one_convolution(name, spans, left):
    before, plan = shallow(name)
    assert len(plan.edits) == spans
    before.module.double()
    after = apply(plan, before)
    for size in (64, 65, 79):
        x = [torch.randn(2, 3, size, size, dtype=torch.float64)]
        assert distance(outputs(after.module, x), outputs(before.module, x)) < EXACT
    assert sum(isinstance(m, nn.Conv2d) for m in after.module.modules()) == left


@pytest.mark.slow
def test_merging_all_blocks_of_resnet152_takes_less_than_half_a_minute_of_one_core():
    before, plan = shallow("resnet152", 32)
    start = time.process_time()
    after = apply(plan, before)
    assert len(plan.edits) == 50 and time.process_time() - start < 30
    x = [torch.randn(2, 3, 32, 32)]
    assert distance(outputs(after.module, x), outputs(before.module, x)) < 1e-4  # float32 rounds the weights of 50 layers
