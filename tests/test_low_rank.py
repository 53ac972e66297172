"""A layer of low rank becomes two low-rank ones, exactly, where that is less work."""

from __future__ import annotations

import pytest
import torch
from oracles import distance, outputs
from torch import nn

from compress.artifact import Artifact, apply
from compress.data import open_data
from compress.edits import Factor, Linearize, Merge, Plan
from compress.errors import PlanMismatch
from compress.graph.merge.low_rank import factor, factored
from compress.graph.trace.trace import trace
from compress.measure.cost import cost
from compress.measure.latency import Timing
from compress.recipe import make
from compress.stage import Context
from compress.stages.merge import Merge as MergeStage

EXACT = 1e-5
"""Relative: float32 rounds the weights of both layers."""


def low_rank(i, o, r, k=3, axis=0, **settings):
    """A convolution whose weights, as a matrix of outputs (axis 0) or inputs (axis 1) and the rest, have rank r."""
    torch.manual_seed(r)
    layer = nn.Conv2d(i, o, k, **settings)
    inner = torch.randn(r, i, k, k) if axis == 0 else torch.randn(o, r, k, k)
    equation = "or,rixy->oixy" if axis == 0 else "ri,orxy->oixy"
    with torch.no_grad():
        layer.weight.copy_(torch.einsum(equation, torch.randn((o, r) if axis == 0 else (r, i)), inner))
    return layer


@pytest.mark.parametrize("settings", [{}, {"padding": 1}, {"stride": 2, "padding": 2}, {"bias": False}])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_convolution_of_low_rank_is_two(axis, settings):
    layer = low_rank(16, 24, 3, axis=axis, **settings)
    found = factored(layer)
    assert found is not None
    window, point = found if axis == 0 else reversed(found)
    assert point.kernel_size == (1, 1) and window.kernel_size == (3, 3) and window.stride == layer.stride
    assert found[0].out_channels == 3 == found[1].in_channels and found[0].bias is None
    for size in (8, 9, 13):
        x = [torch.randn(2, 16, size, size)]
        assert distance(outputs(nn.Sequential(*found), x), outputs(layer, x)) < EXACT


def test_a_linear_layer_of_low_rank_is_two():
    torch.manual_seed(0)
    layer = nn.Linear(30, 20)
    layer.weight.data = torch.randn(20, 4) @ torch.randn(4, 30)
    found = factored(layer)
    assert found is not None and [m.weight.shape for m in found] == [(4, 30), (20, 4)]
    x = [torch.randn(7, 5, 30)]
    assert distance(outputs(nn.Sequential(*found), x), outputs(layer, x)) < EXACT


def test_what_would_not_be_less_work_stays():
    assert factored(nn.Conv2d(8, 8, 3)) is None  # full rank
    assert factored(low_rank(4, 4, 3, 1)) is None  # 3 (4 + 4) > 16
    assert factored(low_rank(16, 16, 2, groups=1, stride=4, k=1)) is not None
    assert factored(nn.Conv2d(8, 8, 3, groups=2)) is None and factored(nn.ReLU()) is None and factored(nn.AvgPool2d(2)) is None
    empty = nn.Conv2d(8, 8, 3)
    nn.init.zeros_(empty.weight)
    assert factored(empty) is None


@pytest.mark.parametrize(("stride", "window_first"), [(1, False), (2, True)])
def test_of_two_ways_the_one_with_less_work_is_taken(stride, window_first):
    """Of rank 3 both ways: 3 (16 s + 12 k) against 3 (16 k + 12), and a 1x1 in front runs where a stride skips."""
    layer = low_rank(16, 12, 3, stride=stride)
    with torch.no_grad():
        layer.weight.copy_(torch.einsum("or,ri,rxy->oixy", torch.randn(12, 3), torch.randn(3, 16), torch.randn(3, 3, 3)))
    found = factored(layer)
    assert found is not None and (found[0].kernel_size == (3, 3)) == window_first


def test_a_tolerance_tells_how_small_counts_as_nothing():
    layer = low_rank(16, 24, 3)
    layer.weight.data += 1e-3 * torch.randn_like(layer.weight)
    assert factored(layer) is None and factored(layer, 0.02) is not None


def test_a_merged_bottleneck_is_thin_again_and_computes_the_same():
    """1x1 from 32 to 4, 3x3, 1x1 back to 32: the merged window has rank 4 both ways, and thinned twice it is the three again."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(32, 4, 1), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 32, 1), nn.ReLU())
    inputs = (torch.zeros(1, 32, 8, 8),)
    found = Artifact(trace(net.eval(), inputs), inputs)
    merged = apply(Plan((Merge(("0", "1", "2")),)), found)
    small = apply(Plan((Factor("0", 4),)), merged)
    x = [torch.randn(2, 32, 9, 9)]
    assert distance(outputs(small.module, x), outputs(found.module, x)) < EXACT
    assert [str(n.target) for n in small.module.graph.nodes if n.op == "call_module"] == ["0", "0_wide", "3"]
    dense, thick, now = (cost(a.module, inputs).macs for a in (found, merged, small))
    assert dense < now < thick and now == 36 * (4 * 32 * 9 + 4 * 32)
    again = apply(Plan((Factor("0", 4),)), small)
    assert distance(outputs(again.module, x), outputs(found.module, x)) < EXACT and cost(again.module, inputs).macs == dense


@pytest.mark.parametrize(
    ("layer", "rank", "said"),
    [("0", 3, "its rank is 2"), ("1", 2, "its rank does not allow it"), ("2", 2, "this model does not have it"), ("0", 2, None)],
)
def test_a_plan_for_another_rank_is_refused(layer: str, rank: int, said: str | None):
    net = nn.Sequential(low_rank(16, 16, 2, padding=1), nn.ReLU()).eval()
    inputs = (torch.zeros(1, 16, 8, 8),)
    found = Artifact(trace(net, inputs), inputs)
    if said is None:
        assert apply(Plan((Factor(layer, rank),)), found).plan.edits == (Factor(layer, rank),)
        return
    with pytest.raises(PlanMismatch, match=f"{layer}: {said}"):
        apply(Plan((Factor(layer, rank),)), found)


def test_a_layer_that_is_called_twice_stays():
    layer = low_rank(16, 16, 2, padding=1)
    inputs = (torch.zeros(1, 16, 8, 8),)
    found = Artifact(trace(nn.Sequential(layer, nn.ReLU(), layer), inputs), inputs)
    with pytest.raises(PlanMismatch, match="called 2 times"):
        apply(Plan((Factor("0", 2),)), found)


@pytest.mark.parametrize(("ratio", "thin_ones"), [(1.3, True), (0.9, False)])
def test_merging_leaves_two_thin_layers_where_most_lines_are_flat(ratio: float, thin_ones: bool):
    """Only two of 24 channels in the middle do anything: what two 1x1 become has rank 2."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 24, 1), nn.ReLU(), nn.Conv2d(24, 16, 1), nn.ReLU()).eval()
    inputs = (torch.zeros(1, 16, 8, 8),)
    found = Artifact(trace(net, inputs), inputs)
    flat = Linearize("1", 24, (0.5, 1.0, *[0.0] * 22), (0.1,) * 24)
    straight = apply(Plan((flat,)), found)

    def race(one: Artifact, other: Artifact) -> Timing:
        wide = any("_wide" in str(n.target) for n in one.module.graph.nodes)
        r = ratio if wide else cost(other.module, other.inputs).macs / cost(one.module, one.inputs).macs
        return Timing(1.0, r, (r * 0.99, r * 1.01), 5)

    given = Context(found, open_data("digits"), make(data="digits"), torch.device("cpu"), race=race)
    done = MergeStage()(straight, given)
    assert [type(edit) for edit in done.plan.edits] == [Linearize, Merge, *([Factor] if thin_ones else [])]
    x = [torch.randn(2, 16, 8, 8)]
    assert distance(outputs(done.module, x), outputs(straight.module, x)) < EXACT
    assert any("whose rank is so low" in note and ("left as they are" in note) != thin_ones for note in done.notes)


def test_both_layers_know_their_place_in_the_graph():
    x = torch.randn(1, 16, 8, 8)
    module = factor(trace(nn.Sequential(low_rank(16, 24, 3, padding=1), nn.ReLU()).eval(), (x,)), [Factor("0", 3)])
    first, second, _ = (n for n in module.graph.nodes if n.op == "call_module")
    assert second.args == (first,) and second.meta["shape"] == (1, 24, 8, 8)
    assert first.meta.get("shape") is None, "that is another one now; whoever asks notes it again"
