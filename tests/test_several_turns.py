"""Several turns towards one target, and both orders of width and depth."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from compress.artifact import Artifact, apply
from compress.data import open_data
from compress.edits import Keep, Linearize, Plan
from compress.errors import BadInput
from compress.graph.trace.trace import trace
from compress.measure.cost import cost
from compress.measure.latency import Timing
from compress.pipeline.run import run
from compress.pipeline.sequence import stages_of
from compress.recipe import Recipe, make
from compress.refit import refit
from compress.stage import Context
from compress.stages.iteration import Iteration
from compress.stages.order import Order
from compress.stages.remove import Remove

INPUT = (torch.zeros(1, 1, 8, 8),)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(576, 10),
    ).eval()  # fmt: skip


def artifact() -> Artifact:
    return Artifact(trace(net(), INPUT), INPUT)


def context(dense: Artifact, **settings: object) -> Context:
    return Context(dense, open_data("digits"), make(data="digits", **settings), torch.device("cpu"))


def names(**settings: object) -> list[str]:
    return [stage.name for stage in stages_of(make(**settings))]


def test_the_stages_of_a_turn_are_repeated_and_the_others_are_not():
    assert names(iterations=2) == ["analyze", "remove", "linearize", "finetune", "remove 2", "linearize 2", "finetune 2", "merge"]
    assert names(iterations=2, method="obs", reconstruct=5)[4:] == ["remove 2", "reconstruct 2", "finetune 2"]
    assert names(iterations=1) == ["analyze", "remove", "linearize", "finetune", "merge"]
    assert names(iterations=2, order="auto")[1:4] == ["remove + linearize", "finetune", "remove + linearize 2"]
    assert names(order="depth-width")[1:3] == ["linearize", "remove"]
    assert names(order="auto", depth=0) == ["analyze", "remove", "finetune", "merge"], "nothing to put in order"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"epochs": 0}, "--epochs 0"),
        ({"from_scratch": True}, "--from-scratch"),
        ({"linearize": "gradual"}, "--linearize gradual"),
    ],
)
def test_what_does_not_go_with_turns_is_refused(settings: dict[str, object], said: str):
    with pytest.raises(BadInput, match=said):
        make(iterations=2, **settings)
    make(**settings)


def test_a_method_without_removals_has_no_turns():
    with pytest.raises(BadInput, match="easier has none to repeat"):
        stages_of(make(method="easier", iterations=2))


def test_targets_and_epochs_are_split_and_the_way_ends_at_the_target(tmp_path: Path):
    torch.save(net(), tmp_path / "model.pt")
    recipe = make(
        model=str(tmp_path / "model.pt"), data="digits", target="params=0.2", iterations=2, epochs=2, depth=0, align=1, rounds=5,
        method="obs", export=(), device="cpu", allow_doubtful=True,
    )  # fmt: skip
    report = run(recipe, tmp_path / "out")
    params = {record.stage: record.params for record in report.stages}
    dense = params["dense"]
    one = 0.065  # share of a channel of the second convolution in so small a net
    assert 0.2**0.5 - one < params["remove"] / dense <= 0.2**0.5
    assert 0.2 - one < params["finetune 2"] / dense <= 0.2
    assert report.exactness is not None and report.exactness.holds
    trained = [note for note in report.notes if note.startswith("Best epoch")]
    assert len(trained) == 2 and all("of 1 " in note for note in trained), trained
    again = run(recipe, tmp_path / "out", resume=True)
    assert again.stages == report.stages


@dataclass(frozen=True)
class Told:
    """Remembers the recipe that it was run with."""

    recipes: list[Recipe]
    name: str = "remove"

    def needed(self, recipe: Recipe) -> bool:
        return True

    def check(self, artifact: Artifact, context: Context) -> None: ...

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        self.recipes.append(context.recipe)
        return artifact


@pytest.mark.parametrize("unit", ["params", "macs"])
def test_a_turn_asks_for_its_part_of_the_way(unit: str):
    dense, told = artifact(), Told([])
    smaller = apply(Plan((Keep("0", 16, tuple(range(10))),)), dense)
    Iteration(told, 2, 4)(smaller, context(dense, target=f"{unit}=0.25", iterations=4, epochs=2))
    assert float((told.recipes[0].target or "").partition("=")[2]) == pytest.approx(0.5)
    assert told.recipes[0].epochs == 0.5


@pytest.mark.parametrize("unit", ["params", "macs"])
def test_a_share_is_one_of_the_dense_model_whatever_was_removed_before(unit: str):
    dense = artifact()
    smaller = apply(Plan((Keep("0", 16, tuple(range(14))),)), dense)
    done = Remove("magnitude")(smaller, context(dense, target=f"{unit}=0.5", method="magnitude"))
    whole, left = (getattr(cost(a.module, a.inputs), unit) for a in (dense, done))
    assert 0.42 * whole < left <= 0.5 * whole


def test_a_target_that_is_met_leaves_the_channels():
    dense, told = artifact(), Told([])
    smaller = apply(Plan((Keep("0", 16, (0,)),)), dense)
    same = Remove("magnitude")(smaller, context(dense, target="size=30KB", method="magnitude"))
    assert same.module is smaller.module
    assert "meets the target size=30KB already" in same.notes[-1]
    Iteration(told, 2, 4)(dense, context(dense, target="size=2KB", iterations=4))
    size = float((told.recipes[0].target or "").partition("=")[2])
    assert size == pytest.approx((cost(dense.module, dense.inputs).weight_bytes * 2000) ** 0.5, rel=1e-3)


def test_a_later_turn_refits_to_the_trained_model_and_not_to_the_dense_one():
    dense = artifact()
    smaller = apply(Plan((Keep("0", 16, tuple(range(8))),)), dense)
    torch.manual_seed(1)
    for parameter in smaller.module.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.1)  # what training did
    given = context(dense, calibration=100)
    x = torch.randn(4, 1, 8, 8)
    held = refit.refitted(smaller, replace(given, trained=smaller))
    assert torch.allclose(held.module(x), smaller.module(x), atol=1e-5)
    assert not torch.allclose(refit.refitted(smaller, given).module(x), smaller.module(x), atol=1e-2)
    line = apply(Plan((Linearize("4", 16),)), smaller)
    there = (smaller.module, held.module)
    towards = refit.refitted(line, replace(given, trained=smaller))
    assert all((towards.module(x) - one(x)).norm() < 0.5 * (line.module(x) - one(x)).norm() for one in there)


class Edited:
    """A stage that carries out one edit, to be put in order with another."""

    def __init__(self, name: str, break_it: float = 0.0) -> None:
        self.name, self.break_it = name, break_it

    def needed(self, recipe: Recipe) -> bool:
        return True

    def check(self, artifact: Artifact, context: Context) -> None: ...

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        module: GraphModule = copy.deepcopy(artifact.module)
        said = [*artifact.notes, self.name]
        if said == ["depth", "width"] and self.break_it:
            module.get_submodule("6").weight.data.mul_(self.break_it)  # type: ignore[union-attr]
        return replace(artifact, module=module, notes=tuple(said))


def race(ratio: float):
    return lambda one, other: Timing(1.0, ratio, (ratio * 0.99, ratio * 1.01), 5)


@pytest.mark.parametrize(
    ("break_it", "ratio", "expected"),
    [(0.0, 1.0, "width before depth"), (0.0, 1.5, "depth before width"), (-1.0, 1.5, "width before depth")],
)
def test_the_better_order_is_taken(break_it: float, ratio: float, expected: str):
    trained = net()
    batch = next(iter(open_data("digits").train.batches(1000)))
    optimizer = torch.optim.Adam(trained.parameters(), 1e-2)
    for _ in range(20):
        loss = nn.functional.cross_entropy(trained(*batch.inputs), batch.target)
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    dense = Artifact(trace(trained.eval(), INPUT), INPUT)
    stage = Order(Edited("width", break_it), Edited("depth", break_it), Edited("merge"))
    found = stage(dense, replace(context(dense), race=race(ratio)))
    assert found.notes[-1].endswith(f": {expected}.")
    assert found.notes[:2] == (("width", "depth") if expected.startswith("width") else ("depth", "width"))
