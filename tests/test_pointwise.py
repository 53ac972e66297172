"""Convolutions that lose their window: sizes, what they answer, what can merge then, and what a refit makes of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.artifact import Artifact, apply
from compress.commands.explain import depth_rows
from compress.data import from_arrays
from compress.edits import Keep, Linearize, Merge, Plan, Pointwise
from compress.errors import PlanMismatch
from compress.graph.merge.segments import narrower, segments
from compress.graph.trace.trace import trace
from compress.measure.cost import cost
from compress.measure.latency import Timing
from compress.recipe import make
from compress.refit import refit
from compress.selection.merge_candidates import candidates, merged
from compress.stage import Context
from compress.stages.linearize import Linearize as LinearizeStage
from compress.stages.merge import Merge as MergeStage

INPUT = (torch.zeros(1, 3, 9, 9),)


class Block(nn.Module):
    """Two windows around an activation, with a skip connection past them."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.relu = nn.ReLU()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.head = nn.Conv2d(width, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.stem(x))
        x = self.relu2(x + self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.head(x).mean((2, 3))


def artifact(net: nn.Module | None = None) -> Artifact:
    torch.manual_seed(0)
    return Artifact(trace((net or Block()).eval(), INPUT), INPUT)


def context(dense: Artifact, **settings: object) -> Context:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 3, 9, 9, generator=generator).numpy()
    data = from_arrays({"x_train": x[:240], "x_test": x[240:]}, mean=[0.0] * 3, std=[1.0] * 3)
    return Context(dense, data, make(calibration=240, **settings), torch.device("cpu"), race=by_macs)


def by_macs(one: Artifact, other: Artifact) -> Timing:
    ratio = cost(other.module, other.inputs).macs / cost(one.module, one.inputs).macs
    return Timing(1.0, ratio, (ratio * 0.99, ratio * 1.01), 5)


@pytest.mark.parametrize(
    ("kernel", "padding", "stride", "groups"), [(3, 1, 1, 1), (5, 2, 2, 3), ((3, 1), (1, 0), 1, 1), (3, "same", 1, 1)]
)
def test_sizes_stay_and_so_does_the_answer_to_what_does_not_change(kernel, padding, stride, groups):
    torch.manual_seed(0)
    dense = artifact(nn.Sequential(nn.Conv2d(3, 9, kernel, stride, padding, groups=groups), nn.ReLU()))
    less = apply(Plan((Pointwise("0"),)), dense)
    for size in (9, 10, 13):
        x = torch.randn(2, 3, 1, 1).expand(-1, -1, size, size)
        before, after = dense.module(x), less.module(x)
        assert before.shape == after.shape
        assert torch.allclose(before[..., 2:-2, 2:-2], after[..., 2:-2, 2:-2], atol=1e-5)
    assert less.module.get_submodule("0").weight.shape[2:] == (1, 1)


@pytest.mark.parametrize(
    ("layer", "name", "said"),
    [
        (nn.Conv2d(3, 4, 3), "0", "sizes would change"),
        (nn.Conv2d(3, 4, 2, padding=1), "0", "sizes would change"),
        (nn.Conv2d(3, 4, 1), "0", "no window"),
        (nn.Conv2d(3, 4, 3, padding=2, dilation=2), "0", "gaps"),
        (nn.Conv2d(3, 4, 3, padding=1), "1", "no convolution"),
        (nn.Conv2d(3, 4, 3, padding=1), "elsewhere", "no convolution"),
    ],
)
def test_what_cannot_lose_its_window_is_refused(layer: nn.Module, name: str, said: str):
    with pytest.raises(PlanMismatch, match=f"{name} .*{said}"):
        apply(Plan((Pointwise(name),)), artifact(nn.Sequential(layer, nn.ReLU())))


def test_a_layer_that_is_called_twice_keeps_its_window():
    conv = nn.Conv2d(3, 3, 3, padding=1)
    with pytest.raises(PlanMismatch, match="called 2 times"):
        apply(Plan((Pointwise("0"),)), artifact(nn.Sequential(conv, nn.ReLU(), conv)))


def test_a_residual_block_becomes_one_window_and_no_larger_one():
    dense = artifact()
    assert not any(one.exact and one.kernel == (3, 3) and one.activations for one in segments(dense.module, INPUT))
    found = {
        one.pointwise: one
        for one in narrower(dense.module, INPUT)
        if one.layers[-1].startswith("add") and len(one.activations) == 1
    }
    assert set(found) == {("conv1",), ("conv2",)}
    one = found[("conv2",)]
    assert one.kernel == (3, 3) and one.macs_after == 8 * 8 * 9 * 81 and one.macs_before == 2 * one.macs_after
    lines = apply(Plan((Linearize("relu1", 8), Pointwise("conv2"))), dense)
    shorter = apply(Plan((Merge(one.layers),)), lines)
    for size in (9, 12):
        x = torch.randn(2, 3, size, size)
        assert torch.allclose(shorter.module(x), lines.module(x), atol=1e-5)
    assert cost(shorter.module, INPUT).macs == cost(merged(dense, [one]).module, INPUT).macs < cost(dense.module, INPUT).macs


def test_windows_go_only_where_they_may():
    dense = artifact()
    with_windows = candidates(dense, by_macs, lambda one: bool(one.activations), pointwise=True)
    without = candidates(dense, by_macs, lambda one: bool(one.activations))
    assert any(one.segment.pointwise for one in with_windows.candidates)
    assert not any(one.segment.pointwise for one in without.candidates)


@pytest.mark.parametrize("inputs", ["sequential", "original"])
@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2)])
def test_a_refit_finds_the_1x1_that_the_window_was(inputs: str, stride: int, groups: int):
    """Nothing but the middle entry counts in the dense layer, the sum of all entries is something else: only a refit finds it."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride, 1, groups=groups), nn.ReLU(), nn.Conv2d(8, 4, 3)
    )
    net[2].weight.data[..., [0, 0, 2, 2], [0, 2, 0, 2]] = 0
    net[2].weight.data[..., [0, 1, 1, 2], [1, 0, 2, 1]] = 0
    dense = artifact(net)
    less = apply(Plan((Pointwise("2"),)), dense)
    less.module.get_submodule("2").weight.data.mul_(-1)
    x = torch.randn(4, 3, 9, 9)
    assert not torch.allclose(less.module(x), dense.module(x), atol=1e-2)
    found = refit.refitted(less, context(dense, inputs=inputs))
    assert torch.allclose(found.module(x), dense.module(x), atol=1e-3)


def test_channels_and_windows_go_together():
    dense = artifact()
    less = apply(Plan((Keep("conv1", 8, (1, 2, 5)), Linearize("relu1", 3), Pointwise("conv2"))), dense)
    kept = refit.kept(dense, less.plan)
    assert kept["conv1"].outputs.tolist() == [1, 2, 5] == kept["conv2"].inputs.tolist()
    assert kept["stem"].outputs.tolist() == list(range(8))
    found = refit.refitted(less, context(dense))
    x = context(dense).data.test.batches(60)
    batch = next(iter(x)).inputs[0]
    assert (found.module(batch) - dense.module(batch)).norm() < 0.7 * (less.module(batch) - dense.module(batch)).norm()


def test_the_stage_takes_a_window_where_quality_allows_it_and_merging_follows():
    dense = artifact()
    dense.module.get_submodule("conv2").weight.data.mul_(1e-3)  # the block hardly matters
    given = context(dense, depth=100, epochs=0)
    shorter = LinearizeStage()(dense, given)
    assert any(isinstance(edit, Pointwise) for edit in shorter.plan.edits), shorter.notes
    result = MergeStage()(shorter, given)
    assert cost(result.module, INPUT).macs < 0.8 * cost(dense.module, INPUT).macs
    x = torch.randn(2, 3, 9, 9)
    assert torch.allclose(result.module(x), shorter.module(x), atol=1e-4)


def test_explain_says_which_window_would_go_and_only_where_one_must():
    row = next(r for r in depth_rows(artifact()) if r.activation == "relu1")
    assert row.pointwise == ("conv2",) and row.macs == pytest.approx(0.5) and row.padding_moves is False
    thin = artifact(nn.Sequential(nn.Conv2d(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 3, 3, padding=1), nn.ReLU()))
    assert next(r for r in depth_rows(thin) if r.activation == "1").pointwise == ()
