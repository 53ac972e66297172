"""Merged equals unmerged: in float64 to 1e-9, on several sizes of input, and one layer is left; what would differ is refused."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import MODELS, Net, random_model, randomise
from oracles import distance, outputs
from torch import nn

from compress.artifact import Artifact, apply
from compress.edits import Linearize, Merge, Plan, Relocate
from compress.errors import PlanMismatch
from compress.graph.channel_affine import ChannelAffine
from compress.graph.linearize import activations
from compress.graph.merge.affine import Form
from compress.graph.merge.merge import merge
from compress.graph.merge.segments import blocked, segments
from compress.graph.trace.shapes import note_shapes
from compress.graph.trace.trace import trace

EXACT = 1e-9
"""Relative, in float64: a merge adds the same products in another order, 1e-16 each; the rest is margin for cancellation."""
SIZES = (8, 9, 13)


def artifact(model, shape=(3, 9, 9), seed=0):
    """The traced model with weights and statistics that hide no mistake, in float64."""
    torch.manual_seed(seed)
    randomise(model.eval())
    for m in model.modules():
        if isinstance(m, ChannelAffine):
            nn.init.uniform_(m.slope, 0.5, 1.5)
            nn.init.uniform_(m.offset, -1, 1)
    module = trace(model, (torch.zeros(1, *shape),)).double()
    return Artifact(module, (torch.zeros(1, *shape, dtype=torch.float64),))


def images(size, channels=3, dims=2):
    return [torch.randn(2, channels, *(size,) * dims, dtype=torch.float64, generator=torch.Generator().manual_seed(size))]


def differ(one, other, inputs):
    return distance(outputs(one.module, inputs), outputs(other.module, inputs))


def layers(found):
    """What is called, by class."""
    called = [found.module.get_submodule(str(n.target)) for n in found.module.graph.nodes if n.op == "call_module"]
    return [type(m).__name__ for m in called]


def check(found, *names, relocate=False, sizes=SIZES, channels=3, dims=2):
    """Merge a chain, compare on every size, and give the merged artifact."""
    found = apply(Plan((Relocate(names),)), found) if relocate else found
    done = apply(Plan((Merge(names),)), found)
    for size in sizes:
        assert differ(done, found, images(size, channels, dims)) < EXACT, size
    return done


def conv(i, o, k=3, **settings):
    return nn.Conv2d(i, o, k, **settings)


# ---- two layers ------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from((1, 3, 5)),
    st.sampled_from((1, 3, 5)),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(0, 2),
    st.sampled_from(((1, 1), (3, 1), (1, 6), (3, 3), (6, 6), (2, 6), (6, 2), (2, 3))),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.integers(0, 99),
)
def test_two_convolutions_are_one(k1, k2, s1, s2, p1, groups, bias1, bias2, norms, seed):
    net = nn.Sequential(conv(6, 12, k1, stride=s1, padding=p1, groups=groups[0], bias=bias1))
    net.extend([nn.BatchNorm2d(12), nn.Identity(), nn.Dropout()] if norms else [])
    last = len(net)
    net.extend([conv(12, 18, k2, stride=s2, groups=groups[1], bias=bias2), *([nn.BatchNorm2d(18)] if norms else [])])
    found = artifact(net, (6, 24, 24), seed)
    done = check(found, "0", str(last), sizes=(23, 24, 31), channels=6)
    merged = done.module.get_submodule("0")
    assert layers(done) == ["Conv2d"] and len(list(done.module.children())) == 1
    assert merged.kernel_size == (k1 + s1 * (k2 - 1),) * 2 and merged.stride == (s1 * s2,) * 2 and merged.padding == (p1, p1)
    assert merged.groups == torch.gcd(*map(torch.tensor, groups))
    assert (merged.bias is not None) == (bias1 or bias2 or norms)


@pytest.mark.parametrize("stride", [(1, 1), (1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize("kernel", [(3, 3), (1, 3), (5, 3), (3, 5)])
def test_padding_moved_to_the_first_convolution_keeps_every_size_and_makes_the_merge_exact(kernel, stride):
    first = conv(3, 5, kernel[0], stride=stride[0], padding=kernel[0] // 2)
    found = artifact(nn.Sequential(first, nn.BatchNorm2d(5), conv(5, 4, kernel[1], stride=stride[1], padding=kernel[1] // 2)))
    moved = apply(Plan((Relocate(("0", "2")),)), found)
    assert moved.module.get_submodule("0").padding == (kernel[0] // 2 + stride[0] * (kernel[1] // 2),) * 2
    assert moved.module.get_submodule("2").padding == (0, 0)
    done = check(moved, "0", "2", sizes=(*SIZES, 32, 33, 34, 35))
    for size in (*SIZES, 32, 33, 34, 35):
        before, after = outputs(found.module, images(size))[0], outputs(done.module, images(size))[0]
        assert before.shape == after.shape
        ring = 1 + kernel[1] // 2
        inner = (slice(None), slice(None), slice(ring, -ring), slice(ring, -ring))
        if before.shape[-1] > 2 * ring:
            assert distance([before[inner]], [after[inner]]) < EXACT
        assert distance([before], [after]) > 1e-3  # the border is another one: it has to be trained


@pytest.mark.parametrize("first", [conv(3, 4, padding=1), conv(3, 4, padding=1, bias=False), conv(3, 4, 1)])
def test_a_border_that_would_differ_is_refused(first):
    found = artifact(nn.Sequential(first, conv(4, 5, padding=1)))
    with pytest.raises(PlanMismatch, match=r"merges 0 to 1.*the border would differ, because 1 still has padding of its own"):
        apply(Plan((Merge(("0", "1")),)), found)


def test_the_comparison_sees_a_wrong_border(monkeypatch):
    found = artifact(nn.Sequential(conv(3, 4, padding=1), conv(4, 5, padding=1)))
    monkeypatch.setattr("compress.graph.merge.merge.same_border", lambda first, second: True)
    done = apply(Plan((Merge(("0", "1")),)), found)
    assert differ(done, found, images(9)) > 1e-3


@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 2), (3, 3)])
def test_without_a_constant_a_fully_padded_first_window_needs_no_moving(kernel, padding):
    """Beyond its border the first map is 0 then, which is what the padding of the second says."""
    found = artifact(nn.Sequential(conv(3, 4, kernel, padding=padding, bias=False), conv(4, 5, padding=1)))
    done = check(found, "0", "1")
    assert done.module.get_submodule("0").padding == (padding + 1,) * 2
    assert [s.relocate for s in segments(found.module, found.inputs)] == [()]


def test_a_bias_of_zeros_is_no_constant():
    net = nn.Sequential(conv(3, 4, 1), conv(4, 5, padding=1))
    nn.init.zeros_(net[0].bias)
    check(artifact(net), "0", "1")


def test_one_of_several_paddings_is_enough_to_be_moved():
    found = artifact(
        nn.Sequential(conv(3, 4, padding=1), conv(4, 6, 1), conv(6, 5, 5, stride=2, padding="valid"), conv(5, 3, 3, padding=1))
    )
    done = check(found, "0", "1", "2", "3", relocate=True, sizes=(9, 12, 16))
    assert done.module.get_submodule("0").padding == (1 + 2,) * 2 and done.module.get_submodule("0").kernel_size == (11, 11)


def test_padding_that_is_where_it_has_to_be_stays():
    net = Net(lambda s, x: s.last(s.one(x) + x), one=conv(3, 3, padding=1), last=conv(3, 4, 1))
    found = artifact(net)
    moved = apply(Plan((Relocate(("one", "add", "last")),)), found)
    assert [m.padding for m in moved.module.modules() if isinstance(m, nn.Conv2d)] == [(1, 1), (0, 0)]
    assert layers(check(moved, "one", "add", "last")) == ["Conv2d"]


def test_windows_that_are_not_square():
    net = nn.Sequential(conv(3, 4, (1, 3), padding=(0, 1), stride=(1, 2)), conv(4, 5, (5, 1), padding=(2, 0)))
    done = check(artifact(net), "0", "1", relocate=True)
    merged = done.module.get_submodule("0")
    assert (merged.kernel_size, merged.padding, merged.stride) == ((5, 3), (2, 1), (1, 2))


def test_padding_by_name_is_resolved():
    done = check(artifact(nn.Sequential(conv(3, 4, 3, padding="same"), conv(4, 5, 5, padding="same"))), "0", "1", relocate=True)
    assert done.module.get_submodule("0").padding == (3, 3)


@pytest.mark.parametrize("dims", [1, 3])
def test_other_numbers_of_axes(dims):
    kind = (nn.Conv1d, None, nn.Conv3d)[dims - 1]
    norm = (nn.BatchNorm1d, None, nn.BatchNorm3d)[dims - 1]
    pool = (nn.AvgPool1d, None, nn.AvgPool3d)[dims - 1]
    net = nn.Sequential(kind(3, 4, 3, padding=1), norm(4), kind(4, 5, 3, stride=2, padding=1), pool(2))
    done = check(artifact(net, (3, *(9,) * dims)), "0", "2", "3", relocate=True, sizes=(8, 9, 12), dims=dims)
    assert layers(done) == [kind.__name__]


def test_a_merge_keeps_type_mode_and_what_is_trained():
    net = nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), conv(4, 5)).eval()
    randomise(net)
    found = Artifact(trace(net, (torch.zeros(1, 3, 9, 9),)), (torch.zeros(1, 3, 9, 9),))
    x = [torch.randn(2, 3, 9, 9)]
    done = apply(Plan((Merge(("0", "2")),)), found)
    assert differ(done, found, x) < 1e-5  # float32 rounds the merged weights
    merged = done.module.get_submodule("0")
    assert merged.weight.dtype is torch.float32 and merged.weight.requires_grad and not merged.training
    exact = apply(Plan((Merge(("0", "2")),)), Artifact(copy.deepcopy(found.module).double(), (torch.zeros(1, 3, 9, 9).double(),)))
    assert torch.equal(merged.weight, exact.module.get_submodule("0").weight.float())  # rounded once, at the end
    assert torch.equal(merged.bias, exact.module.get_submodule("0").bias.float())
    found.module.get_submodule("0").requires_grad_(False)
    assert not apply(Plan((Merge(("0", "2")),)), found).module.get_submodule("0").weight.requires_grad


# ---- linear layers, lines, norms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6,), (5, 6)])
def test_linear_layers_and_a_line_are_one_linear_layer(shape):
    found = artifact(nn.Sequential(nn.Linear(6, 20), ChannelAffine(20, -1), nn.Dropout(), nn.Linear(20, 4)), shape)
    done = apply(Plan((Merge(("0", "3")),)), found)
    x = [torch.randn(3, *shape, dtype=torch.float64)]
    assert differ(done, found, x) < EXACT and layers(done) == ["Linear"]
    assert done.module.get_submodule("0").weight.shape == (4, 6)


def test_a_norm_behind_vectors_merges_and_one_behind_tokens_does_not():
    def net():
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3, bias=False))

    vectors, tokens = artifact(net(), (6,)), artifact(net(), (5, 6))
    done = apply(Plan((Merge(("0", "2")),)), vectors)
    assert differ(done, vectors, [torch.randn(3, 6, dtype=torch.float64)]) < EXACT and layers(done) == ["Linear"]
    with pytest.raises(PlanMismatch, match="has its channels on another axis"):
        apply(Plan((Merge(("0", "2")),)), tokens)


def test_a_norm_behind_the_last_layer_goes_with_it():
    done = check(
        artifact(nn.Sequential(conv(3, 4), nn.Identity(), conv(4, 5), nn.Identity(), nn.BatchNorm2d(5), nn.ReLU())), "0", "2"
    )
    assert layers(done) == ["Conv2d", "ReLU"]


def test_a_dropout_behind_the_last_layer_stays():
    done = check(artifact(nn.Sequential(conv(3, 4), nn.Dropout(), conv(4, 5), nn.Dropout())), "0", "2")
    assert layers(done) == ["Conv2d", "Dropout"]


# ---- pools and the head ----------------------------------------------------------------------------------------------------

POOLS = {
    "before": lambda: nn.Sequential(nn.AvgPool2d(2), conv(3, 4), nn.BatchNorm2d(4)),
    "behind": lambda: nn.Sequential(conv(3, 4, padding=1), nn.AvgPool2d(3, 2)),
    "padded": lambda: nn.Sequential(conv(3, 4, padding=1), nn.AvgPool2d(3, 2, padding=1)),
    "divided": lambda: nn.Sequential(conv(3, 4), nn.AvgPool2d((3, 2), 1, divisor_override=5)),
}


@pytest.mark.parametrize("name", POOLS)
def test_average_pools_are_absorbed(name):
    done = check(artifact(POOLS[name]()), "0", "1", relocate=True)
    assert layers(done) == ["Conv2d"]


HEADS = {
    "modules": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout()),
    "a pair": nn.Sequential(nn.AdaptiveAvgPool2d((1, 1)), nn.Dropout(), nn.Flatten(1)),
    "function": Net(lambda s, x: torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1)),
    "mean": Net(lambda s, x: x.mean((2, 3))),
    "mean, kept": Net(lambda s, x: torch.mean(x, dim=[-1, -2], keepdim=True).flatten(1)),
}


def headed(name, first):
    return artifact(
        Net(
            lambda s, x: s.fc(s.act(s.middle(s.bn(s.conv(x))))),
            conv=first,
            bn=nn.BatchNorm2d(7),
            middle=copy.deepcopy(HEADS[name]),
            act=nn.Identity(),
            fc=nn.Linear(7, 4),
        )
    )


@pytest.mark.parametrize("name", HEADS)
def test_a_1x1_convolution_goes_behind_the_mean(name):
    found = headed(name, conv(3, 7, 1))
    done = check(found, "conv", "fc")
    merged = done.module.get_submodule("conv")
    assert isinstance(merged, nn.Linear) and merged.weight.shape == (4, 3)
    assert not any(isinstance(m, nn.Conv2d | nn.BatchNorm2d) for m in done.module.modules()) and not hasattr(done.module, "fc")


@pytest.mark.parametrize("name", HEADS)
def test_a_window_takes_the_linear_layer_in_front_of_the_mean(name):
    found = headed(name, conv(3, 7, 3, padding=1, stride=2))
    done = check(found, "conv", "fc")
    merged = done.module.get_submodule("conv")
    assert isinstance(merged, nn.Conv2d) and merged.weight.shape == (4, 3, 3, 3)
    assert not hasattr(done.module, "fc") and not any(isinstance(m, nn.BatchNorm2d) for m in done.module.modules())


def test_two_convolutions_a_mean_and_two_linear_layers_are_one():
    net = nn.Sequential(
        conv(3, 4, padding=1), conv(4, 5, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 6), nn.Linear(6, 2)
    )
    done = check(artifact(net), "0", "1", "4", "5", relocate=True)
    assert layers(done) == ["Conv2d", "AdaptiveAvgPool2d", "Flatten"]


# ---- skip connections ------------------------------------------------------------------------------------------------------


def skip(function="plus"):
    def call(s, x):
        y = s.bn(s.two(s.one(x)))
        short = s.down(x) if hasattr(s, "down") else x
        match function:
            case "plus":
                return s.last(y + short)
            case "torch.add":
                return s.last(torch.add(short, y))
            case "in place":
                y += short
                return s.last(y)
            case "method":
                return s.last(y.add_(short))

    return call


@pytest.mark.parametrize("function", ["plus", "torch.add", "in place", "method"])
def test_a_skip_connection_is_a_one_in_the_middle_of_the_window(function):
    found = artifact(
        Net(skip(function), one=conv(3, 5, padding=1), two=conv(5, 3, padding=1), bn=nn.BatchNorm2d(3), last=nn.ReLU())
    )
    (total,) = [s for s in segments(found.module, found.inputs) if len(s.layers) == 3]
    assert total.relocate == (("one", "two"),)
    moved = apply(Plan((Relocate(("one", "two")),)), found)
    done = check(moved, *total.layers)
    assert layers(done) == ["Conv2d", "ReLU"] and done.module.get_submodule("one").kernel_size == (5, 5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 1)])
def test_a_convolution_on_the_skip_connection_goes_in(stride, kernel, padding):
    net = Net(
        skip(),
        one=conv(3, 5, 1),
        two=conv(5, 6, padding=1, stride=stride),
        bn=nn.BatchNorm2d(6),
        down=nn.Sequential(conv(3, 6, kernel, padding=padding, stride=stride, bias=False), nn.BatchNorm2d(6)),
        last=nn.ReLU(),
    )
    found = apply(Plan((Relocate(("one", "two")),)), artifact(net))
    done = check(found, "one", "two", "down.0", "add")
    assert layers(done) == ["Conv2d", "ReLU"]


def test_spans_of_1x1_convolutions_merge_with_what_is_around_them():
    def call(s, x):
        y = s.stem(x)
        y = s.b(s.a(y)) + y
        return s.tail(s.c(y) + s.d(y))

    net = Net(
        call,
        stem=conv(3, 4, padding=1),
        a=conv(4, 6, 1),
        b=conv(6, 4, 1),
        c=conv(4, 5, 1),
        d=conv(4, 5, 1),
        tail=conv(5, 3, padding=1),
    )
    done = check(artifact(net), "stem", "a", "b", "add", "c", "d", "add_1", "tail", relocate=True)
    assert layers(done) == ["Conv2d"]


def test_a_span_inside_a_span():
    def call(s, x):
        return (lambda y: s.b(s.a(y) + y) + y)(s.stem(x))

    net = Net(call, stem=conv(3, 4), a=conv(4, 4, padding=1), b=conv(4, 4, 1))
    done = check(artifact(net), "a", "add", "b", "add_1")
    assert layers(done) == ["Conv2d", "Conv2d"]


def test_two_inner_layers_can_merge_without_their_skip_connection():
    found = artifact(Net(skip(), one=conv(3, 5, 1), two=conv(5, 3, 3, padding=1), bn=nn.BatchNorm2d(3), last=nn.ReLU()))
    done = check(found, "one", "two", relocate=True)
    assert layers(done) == ["Conv2d", "ReLU"] and sum(n.name == "add" for n in done.module.graph.nodes) == 1


@pytest.mark.parametrize(
    ("net", "says"),
    [
        (
            Net(skip(), one=conv(3, 5, padding=1), two=conv(5, 3, padding=1), bn=nn.BatchNorm2d(3), last=conv(3, 4, padding=1)),
            "padding cannot move across the sum add",
        ),
        (
            Net(
                lambda s, x: s.last(s.two(s.one(s.bn(x))) + x),
                one=conv(3, 5, padding=1),
                two=conv(5, 3, 1),
                bn=nn.BatchNorm2d(3),
                last=nn.ReLU(),
            ),
            "padding cannot move to bn",
        ),
        (
            Net(skip(), one=conv(3, 5, 1), two=conv(5, 3, 3), bn=nn.Identity(), down=conv(3, 3, 3), last=nn.ReLU()),
            None,
        ),
        (
            Net(
                skip(),
                one=conv(3, 5, stride=3),
                two=conv(5, 3, 1),
                bn=nn.Identity(),
                down=conv(3, 3, 2, stride=3),
                last=nn.ReLU(),
            ),
            "do not give maps of one size",
        ),
    ],
)
def test_a_span_whose_border_cannot_be_kept_is_told_with_the_reason(net, says):
    found = artifact(net)
    reasons = [s.reason for s in segments(found.module, found.inputs) if "add" in s.layers]
    assert (reasons == [None]) if says is None else any(reason and says in reason for reason in reasons)


def test_a_value_that_others_change_in_place_is_left_alone():
    def call(s, x):
        y = s.stem(x)
        z = s.two(s.one(y))
        return z + s.act(y)

    found = artifact(Net(call, stem=conv(3, 4, padding=1), one=conv(4, 4, 1), two=conv(4, 4, 1), act=nn.ReLU(inplace=True)))
    with pytest.raises(PlanMismatch, match="one reads what act changes in place"):
        apply(Plan((Merge(("one", "two")),)), found)


# ---- chains of any length --------------------------------------------------------------------------------------------------


WINDOW = st.tuples(st.sampled_from("135"), st.integers(1, 2), st.booleans())
ANYTHING = st.tuples(st.sampled_from("135dnlp"), st.integers(1, 2), st.booleans())


@settings(max_examples=30, deadline=None)
@given(WINDOW, st.lists(ANYTHING, max_size=4), WINDOW, st.integers(0, 9))
def test_any_chain_is_one_layer_once_its_padding_is_moved(first, middle, last, seed):
    torch.manual_seed(seed)
    net, width, steps = nn.Sequential(), 3, []
    for kind, stride, flag in (first, *middle, last):
        stride = stride if len(steps) < 2 else 1
        if kind in "135":
            k, wide = int(kind), 2 + int(torch.randint(4, ()))
            net.append(conv(width, wide, k, stride=stride, padding=k // 2 * flag))
            width = wide
        elif kind == "d":
            net.append(conv(width, width, 3, padding=1, groups=width, bias=flag))
        elif kind == "p":
            net.append(nn.AvgPool2d(2, stride))
        else:
            net.append(nn.BatchNorm2d(width) if kind == "n" else ChannelAffine(width))
        steps += [str(len(net) - 1)] if kind in "135dp" else []
    found = artifact(net, (3, 72, 72), seed)
    (whole,) = [s for s in segments(found.module, found.inputs) if s.layers == tuple(steps)]
    assert whole.exact
    moved = apply(Plan(tuple(Relocate(r) for r in whole.relocate)), found)
    for size in (71, 72, 75):
        assert [x.shape for x in outputs(moved.module, images(size))] == [x.shape for x in outputs(found.module, images(size))]
    done = check(moved, *steps, sizes=(71, 72, 75))
    assert done.module.get_submodule("0").kernel_size == whole.kernel
    assert sum(p.numel() for p in done.module.parameters()) == whole.params_after


@pytest.mark.parametrize("name", MODELS)
def test_every_exact_segment_of_every_model_merges_and_every_other_rectifier_has_a_reason(name):
    model, inputs = random_model(name)
    found = Artifact(trace(model, inputs).double(), tuple(x.double() if x.is_floating_point() else x for x in inputs))
    x = [torch.randn(2, *i.shape[1:], dtype=i.dtype) if i.is_floating_point() else i for i in found.inputs]
    exact = [s for s in segments(found.module, found.inputs) if s.exact]
    shapes = {n.name: n.meta["shape"] for n in found.module.graph.nodes}
    every = {activation.path: activation for activation in activations(found.module)}
    for segment in exact:
        widths = {path: shapes[every[path].node][every[path].axis] for path in segment.activations}
        numbers = {path: (tuple(torch.rand(n).tolist()), tuple(torch.randn(n).tolist())) for path, n in widths.items()}
        lines = tuple(Linearize(path, widths[path], *numbers[path]) for path in segment.activations)
        linear = apply(Plan((*lines, *(Relocate(r) for r in segment.relocate))), found)
        linear.module.double()
        assert differ(apply(Plan((Merge(segment.layers),)), linear), linear, x) < EXACT, segment
    told = blocked(found.module)
    assert all(told.values()) and set(told) == set(every) - {activation for s in exact for activation in s.activations}


# ---- plans -----------------------------------------------------------------------------------------------------------------


def chain():
    return nn.Sequential(conv(3, 4, padding=1), nn.ReLU(), conv(4, 5, padding=1), nn.ReLU(), nn.MaxPool2d(2), conv(5, 6))


def test_a_whole_plan_linearizes_moves_padding_and_merges_and_leaves_the_first_model_as_it_was():
    found = artifact(chain())
    before = copy.deepcopy(found.module.state_dict())
    plan = Plan((Linearize("1", 4, (0.5,) * 4, (0.25,) * 4), Relocate(("0", "2")), Merge(("0", "2"))))
    lined = apply(Plan(plan.edits[:2]), found)
    done = apply(plan, found)
    assert layers(done) == ["Conv2d", "ReLU", "MaxPool2d", "Conv2d"]
    assert differ(done, lined, images(9)) < 1e-6  # the slope came as float32
    assert done.plan.edits == plan.edits
    assert layers(found) == ["Conv2d", "ReLU", "Conv2d", "ReLU", "MaxPool2d", "Conv2d"]
    assert all(torch.equal(before[k], v) for k, v in found.module.state_dict().items())


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (Merge(("0", "2")), "1 is not linear"),
        (Merge(("0", "stem")), "this model does not have stem"),
        (Merge(("2", "5")), "5 does not follow 2 alone"),
        (Merge(("2", "4")), r"4 \(MaxPool2d\) is not linear"),
        (Merge(("2", "0")), "other layers stand between them"),
        (Relocate(("0", "1")), "moves the padding of 0 to 1, .* 1 is no layer that merges"),
        (Relocate(("0", "2")), "1 is not linear"),
    ],
)
def test_a_plan_for_another_model_says_which_layer_differs(edit, says):
    with pytest.raises(PlanMismatch, match=says):
        apply(Plan((edit,)), artifact(chain()))


def test_what_is_merged_already_cannot_be_merged_again():
    found = artifact(nn.Sequential(conv(3, 4), conv(4, 5), nn.ReLU()))
    done = apply(Plan((Merge(("0", "1")),)), found)
    assert segments(done.module, done.inputs) == ()
    with pytest.raises(PlanMismatch, match="this model does not have 1"):
        apply(Plan((Merge(("0", "1")),)), done)


def test_merges_of_one_plan_speak_of_what_the_merges_before_them_left():
    found = artifact(nn.Sequential(conv(3, 4), conv(4, 5), nn.ReLU(), conv(5, 4), conv(4, 3), conv(3, 2)), (3, 12, 12))
    done = apply(Plan((Merge(("0", "1")), Merge(("3", "4")), Merge(("3", "5")))), found)
    assert differ(done, found, images(12)) < EXACT and layers(done) == ["Conv2d", "ReLU", "Conv2d"]


@pytest.mark.parametrize("name", ["a 1x1 behind the mean", "a window in front of it"])
def test_a_merged_model_knows_the_shapes_that_it_has(name):
    first = nn.Conv2d(3, 5, 1) if "1x1" in name else conv(3, 5)
    model = artifact(nn.Sequential(first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)))
    module = merge(model.module, [Merge(("0", "3"))])
    told = {n.name: n.meta.get("shape") for n in module.graph.nodes}
    note_shapes(module, module.graph, model.inputs)
    assert told == {n.name: n.meta["shape"] for n in module.graph.nodes}


def test_only_a_window_of_one_without_padding_maps_every_position_for_itself():
    assert Form(3, 4, size=(1, 1), stride=(1, 1), padding=(0, 0)).pointwise
    others = [((3, 1), (1, 1), (0, 0)), ((1, 1), (2, 1), (0, 0)), ((1, 1), (1, 1), (1, 0)), ((3, 3), (1, 1), (1, 1))]
    assert not any(Form(3, 4, size=k, stride=s, padding=p).pointwise for k, s, p in others)
