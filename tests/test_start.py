"""A training that begins at a good model: rates by the size of weights, norms that are held, and harm that is taken back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from compress.artifact import Artifact
from compress.data import Data, open_data
from compress.data.stores import Stored
from compress.graph.trace.trace import trace
from compress.measure.quality import METRICS, Counted, Metric, Quality
from compress.recipe import make
from compress.stage import Context
from compress.stages import finetune
from compress.training import harm, train
from compress.training.loop import Training
from compress.training.setup import FLAT, FLAT_SGD, SHARE, optimizer_for


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits")


def with_validation(data: Data) -> Data:
    """The same data with a held-out part that the dense model has not seen: nothing is taken back for harm."""
    return replace(data, held_out=replace(data.held_out, inputs=(Stored(data.held_out.inputs[0].values),)))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))


@pytest.fixture(scope="module")
def good(digits: Data) -> nn.Module:
    return train(net(), digits, make(epochs=6, lr=1e-2, batch_size=64, distill=0.0)).module


def rates(model: nn.Module, **settings: object) -> dict[str, float]:
    names = {id(p): name for name, p in model.named_parameters()}
    groups = optimizer_for(model, make(**settings)).param_groups
    return {names[id(p)]: group["peak"] for group in groups for p in group["params"]}


def test_the_rate_is_a_share_of_the_size_of_a_layers_weights():
    model = net()
    with torch.no_grad():
        model[0].weight.fill_(0.16)
        model[4].weight.fill_(0.0)
    found = rates(model)
    assert found["0.weight"] == pytest.approx(SHARE * 0.16, rel=0.2)  # in steps of the root of 2
    assert found["4.weight"] == pytest.approx(SHARE * 1e-3, rel=0.2)  # the smallest size that is taken
    assert {found[name] for name in ("1.weight", "1.bias", "4.bias")} == {FLAT}
    with torch.no_grad():
        model[0].weight.mul_(0.1)
    assert rates(model)["0.weight"] == pytest.approx(found["0.weight"] / 10, rel=0.5)


def test_a_rate_that_is_given_is_that_of_every_weight():
    assert set(rates(net(), lr=3e-3).values()) == {3e-3} and set(rates(net(), optimizer="sgd").values()) == {FLAT_SGD}
    decays = {group["weight_decay"] for group in optimizer_for(net(), make(weight_decay=0.5)).param_groups}
    assert decays == {0.5, 0.0}


def test_norms_that_are_held_keep_their_statistics_and_learn_their_scale(digits: Data, good: nn.Module):
    recipe = make(epochs=1, lr=1e-2, batch_size=64)

    def after(start: nn.Module, hold: bool) -> dict[str, torch.Tensor]:
        return train(start, with_validation(digits), recipe, teacher=good, hold_norms=hold).module.state_dict()

    held, free, before = after(good, True), after(good, False), good.state_dict()
    for name in ("1.running_mean", "1.running_var"):
        assert torch.equal(held[name], before[name]) and not torch.equal(free[name], before[name])
    assert not torch.equal(held["1.weight"], before["1.weight"])
    far = net()  # one that does not agree with the dense model: its statistics are worth nothing
    assert not torch.equal(after(far, True)["1.running_mean"], far.state_dict()["1.running_mean"])


def test_training_that_loses_agreement_and_quality_on_known_images_is_taken_back(digits: Data, good: nn.Module):
    # Much too quick: the model forgets, and has not failed plainly.
    found = train(good, digits, make(epochs=0.3, lr=0.04, batch_size=16, distill=0.9, clip=0.0), teacher=good)
    start, end = found.history[0], found.history[-1]
    assert 0.8 * start.quality < end.quality < start.quality, "neither a failure nor a gain"
    assert found.best == 0 and all(torch.equal(a, b) for a, b in zip(found.module.parameters(), good.parameters(), strict=True))
    assert "Training was taken back: on held-out images" in found.notes[-1] and "points fewer [" in found.notes[-1]


def test_training_that_gains_stays(digits: Data, good: nn.Module):
    worse = copy.deepcopy(good)
    with torch.no_grad():
        worse[4].weight.add_(0.3 * torch.randn(worse[4].weight.shape, generator=torch.Generator().manual_seed(0)))
    found = train(worse, digits, make(epochs=2, lr=1e-2, batch_size=64), teacher=good)
    assert found.best == len(found.history) - 1 and not any("taken back" in note for note in found.notes)


def counting(*agreed: int) -> Callable[[Metric, int], Counted]:
    """Agreement of 1,000 samples in ten slices, so many of each hundred, one call after the other."""
    rows = iter(agreed)

    def count(metric: Metric, slices: int) -> Counted:
        assert metric is METRICS["agreement"] and slices > 1
        n = next(rows)
        scattered = torch.tensor([[float(n + (-1) ** i), 100.0] for i in range(10)], dtype=torch.float64)
        return Counted(scattered, 1000)

    return count


@pytest.mark.parametrize(
    ("now", "before", "after", "taken"),
    [
        (90, 0.95, 0.93, True),  # both say harm
        (90, 0.95, 0.96, False),  # better by the labels
        (94, 0.95, 0.95, True),  # both say so, though neither beyond its noise
        (96, 0.95, 0.93, False),  # agrees better: the labels were remembered
        (95, 0.95, 0.95, False),  # nothing has changed
    ],
)
def test_harm_is_what_both_measures_say(now: int, before: float, after: float, taken: bool):
    begun = harm.start(counting(95, now), "classification", True)
    assert begun is not None
    assert (begun.harmed(Quality("top1", before, 1000), Quality("top1", after, 1000)) is not None) is taken


@pytest.mark.parametrize(("task", "taught"), [("regression", True), ("classification", False)])
def test_nobody_can_tell_without_classes_or_a_dense_model(task: str, taught: bool):
    assert harm.start(counting(), task, taught) is None


def test_without_labels_the_start_competes(digits: Data, good: nn.Module):
    spec = replace(digits.spec, labeled=False)
    parts = {name: replace(getattr(digits, name), targets=None, spec=spec) for name in ("train", "held_out", "test")}
    found = train(good, replace(digits, **parts, spec=spec), make(epochs=0.3, lr=0.15, batch_size=16, clip=0.0), teacher=good)
    assert found.metric == "agreement" and found.best == 0


def test_no_epoch_that_is_worse_than_the_start_by_a_validation_of_ones_own_is_taken(digits: Data, good: nn.Module):
    # Within a standard error, which is three of these images.
    found = train(good, with_validation(digits), make(epochs=0.2, lr=0.01, batch_size=16), teacher=good)
    assert found.history[0].quality - 0.03 < found.history[-1].quality < found.history[0].quality
    assert found.best == 0 and all(torch.equal(a, b) for a, b in zip(found.module.parameters(), good.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "held"),
    [({"epochs": 1}, True), ({"epochs": 1.5}, False), ({"epochs": 1, "from_scratch": True}, False)],
)
def test_the_stage_holds_norms_in_short_trainings_of_weights_that_are_there(
    digits: Data, good: nn.Module, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object], held: bool
):
    asked: list[bool] = []

    def told(module: nn.Module, *_: object, hold_norms: bool, **__: object) -> Training:
        asked.append(hold_norms)
        return Training(module, (), 0, "top1")

    monkeypatch.setattr("compress.training.together.train", told)
    x = torch.zeros(1, 1, 8, 8)
    artifact = Artifact(trace(good, (x,)), (x,))
    finetune.Finetune()(artifact, Context(artifact, digits, make(**settings), torch.device("cpu")))
    assert asked == [held]
