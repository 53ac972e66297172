"""Every run compares what may not change: removed with masked, merged with unmerged. Lines and moved padding may."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from models import randomise
from torch import nn

from compress.artifact import Artifact, apply, runs
from compress.checkpoint.load import load
from compress.checkpoint.save import save
from compress.edits import Keep, Linearize, Merge, Plan, Relocate
from compress.graph.trace.trace import trace
from compress.pipeline.harness import Harness


@pytest.fixture
def dense():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    ).eval()
    randomise(net)
    return Artifact(trace(net, (torch.zeros(1, 3, 8, 8),)), (torch.zeros(1, 3, 8, 8),))


def harness(dense):
    batches = [SimpleNamespace(inputs=(torch.randn(16, 3, 8, 8),)) for _ in range(3)]
    data = SimpleNamespace(test=SimpleNamespace(batches=lambda size: batches))
    return Harness(None, data, dense, torch.device("cpu"), None, None)  # type: ignore[arg-type]


LINES = (Linearize("2", 6, (0.5,) * 6, (0.1,) * 6), Relocate(("0", "3")))
MERGE = Merge(("0", "3"))
KEEP = Keep("3", 8, (0, 1, 5, 7))


@pytest.mark.parametrize("edits", [(), LINES[:1], LINES])
def test_edits_that_change_the_model_on_purpose_are_not_compared(dense, edits):
    assert harness(dense).exactness(dense, edits) is None


@pytest.mark.parametrize("edits", [(KEEP,), (*LINES, MERGE), (KEEP, *LINES, MERGE), (*LINES, MERGE, Keep("0", 8, (0, 3)))])
def test_removed_and_merged_models_are_compared_on_real_inputs(dense, edits):
    found = harness(dense).exactness(dense, edits)
    assert found is not None and found.samples == 32
    assert 0 <= found.worst_abs <= found.tolerance < 1e-3


def test_a_merge_after_training_is_compared_with_the_weights_that_were_trained(dense):
    lined = apply(Plan(LINES), dense)
    with torch.no_grad():
        for p in lined.module.parameters():
            p += 0.1 * torch.randn_like(p)
    found = harness(dense).exactness(lined, (MERGE,))
    assert found is not None and found.holds


def test_a_merge_that_is_not_exact_is_seen(dense, monkeypatch):
    monkeypatch.setattr("compress.graph.merge.merge.same_border", lambda first, second: True)
    found = harness(dense).exactness(dense, (*LINES[:1], MERGE))
    assert found is not None and not found.holds


def test_outputs_that_are_infinite_on_both_sides_are_equal_and_on_one_alone_are_not(dense):
    class Infinite(nn.Module):
        def __init__(self, places: int):
            super().__init__()
            self.places = places

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.ones(len(x), 4)
            y[:, : self.places] = float("inf")
            return y

    def apart(one: int, other: int):
        return harness(dense)._apart(Infinite(one), Infinite(other))

    assert apart(2, 2).worst_abs == 0 and apart(4, 4).worst_abs == 0
    assert apart(1, 2).worst_abs > 1e30 and apart(2, 1).worst_abs > 1e30


def test_the_worst_of_several_comparisons_counts(dense, monkeypatch):
    monkeypatch.setattr("compress.graph.merge.merge.same_border", lambda first, second: True)
    found = harness(dense).exactness(dense, (*LINES[:1], MERGE, Keep("0", 8, (0, 3))))
    assert found is not None and not found.holds


def test_edits_of_one_kind_are_carried_out_together_until_a_layer_comes_back():
    one, two, again = Keep("a", 4, (0, 1, 2)), Keep("b", 4, (0,)), Keep("a", 3, (0,))
    edits = (one, two, again, Linearize("r", 3), MERGE, Keep("b", 1, (0,)))
    assert list(runs(edits)) == [(one, two), (again,), (edits[3],), (MERGE,), (edits[5],)]
    assert list(runs(())) == []


def test_a_shallower_model_is_saved_and_read_back(dense, tmp_path):
    lined = apply(Plan(LINES), dense)
    x = torch.randn(2, 3, 9, 9)
    for name, found in (("lined", lined), ("merged", apply(Plan((MERGE,)), lined))):
        save(found, tmp_path / name)
        assert torch.equal(load(tmp_path / name)(x), found.module(x))
