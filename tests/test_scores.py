"""What single channels are worth: by the states of their activations, by their filters, by chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.artifact import Artifact, apply
from compress.data import from_arrays
from compress.edits import Plan
from compress.entropy import swaps
from compress.errors import UnsupportedModel
from compress.graph.channels.solve import solve
from compress.graph.trace.trace import trace
from compress.recipe import make
from compress.refit import refit
from compress.selection.budget import removable
from compress.selection.channels import Losses, entropic, sweeps
from compress.selection.choice import Choice, _chosen, _what_goes
from compress.selection.scores import SCORES, taylor, weight_products
from compress.stage import Context
from compress.stages.remove import Remove

INPUT = (torch.zeros(1, 3, 6, 6),)
OFF, ON, RARE = 2, 5, 0


def context(net: nn.Module, **settings: object) -> Context:
    images = np.random.default_rng(0).standard_normal((64, 3, 6, 6)).astype(np.float32)
    labels = np.arange(64) % 4
    data = from_arrays({"x_train": images, "y_train": labels, "x_test": images, "y_test": labels})
    return Context(Artifact(trace(net.eval(), INPUT), INPUT), data, make(epochs=0, **settings), torch.device("cpu"))


def planted() -> nn.Sequential:
    """Channels of known states behind the first convolution: always off, always on, seldom on; the others switch."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )
    with torch.no_grad():
        for channel, bias in ((OFF, -100.0), (ON, 100.0), (RARE, -1.5)):
            net[0].bias[channel] = bias
    return net


def test_the_state_of_a_rectifier_orders_channels_off_before_on_before_rare():
    told = context(planted())
    groups = removable(told.dense.module, solve(told.dense.module, told.dense.inputs))
    scores = SCORES["state-entropy"](told.dense, told, groups)
    (worth,) = scores.values()  # the second convolution has no activation behind it
    assert worth.argsort()[:3].tolist() == [OFF, ON, RARE]
    assert worth[OFF] == -1 and worth[ON] == 0 and 0 < worth[RARE] < worth.topk(5).values.min()


def test_magnitude_is_the_sum_of_a_channels_weights_and_taylor_that_of_its_products():
    told = context(planted())
    module = told.dense.module
    groups = removable(module, solve(module, told.dense.inputs))
    scores = SCORES["magnitude"](told.dense, told, groups)
    for group, layer in zip(groups, ("0", "2"), strict=True):
        # Sums in double precision of float32 weights.
        assert torch.allclose(scores[group.name], module.get_submodule(layer).weight.abs().double().sum((1, 2, 3)))
    images, labels = torch.randn(6, 3, 6, 6), torch.arange(6) % 4
    once = weight_products(module, [((images,), labels)], torch.device("cpu"), 0)
    in_parts = weight_products(module, [((images,), labels)], torch.device("cpu"), 0, most=4)
    assert torch.allclose(in_parts["0.weight"], once["0.weight"], rtol=1e-4)  # float32 sums of another order
    loss = F.cross_entropy(module(images), labels)
    (gradient,) = torch.autograd.grad(loss, [module.get_submodule("0").weight])
    by_hand = (module.get_submodule("0").weight * gradient).abs()
    assert torch.allclose(once["0.weight"], by_hand)
    assert torch.allclose(taylor(module, groups[0], once), by_hand.double().sum((1, 2, 3)))
    twice = weight_products(module, [((images,), labels)] * 2, torch.device("cpu"), 0)
    assert torch.allclose(twice["0.weight"], once["0.weight"]), "a mean over batches"


def test_a_selector_that_measures_the_loss_is_what_its_name_says():
    told = context(planted())
    groups = removable(told.dense.module, solve(told.dense.module, told.dense.inputs))
    losses = Losses(told.dense.module, refit.statistics(told.dense, told, groups, states=False))
    swept = sweeps(losses, groups, lambda share: None)
    # A sweep that is far from the best, so that those who finish it differ from those who take it.
    bad = {name: replace(sweep, order=tuple(sorted(sweep.order))) for name, sweep in swept.items()}
    group = groups[0]
    forms, count = losses.of(group), 3
    expected = {
        "obs": bad[group.name].kept(count),
        "obs-swaps": swaps.improve(forms, bad[group.name].kept(count)),
        "entropic": entropic(forms, bad[group.name], count),
        "entropic-path": entropic(forms, bad[group.name], count, exchange=False),
    }
    assert len({tuple(kept) for kept in expected.values()}) > 1 and expected["obs"] != expected["obs-swaps"]
    for name, kept in expected.items():
        assert _chosen((losses, bad), name, [(group, count)], told) == [tuple(sorted(kept))]  # type: ignore[arg-type]


def test_numbers_that_do_not_compare_across_layers_take_the_same_share_of_every_group_and_losses_do_not():
    told = context(planted(), target="params=0.4", method="magnitude")

    def counts(selector: str, alike: bool | None) -> list[int]:
        return [len(edit.keep) for edit in Choice(selector, share_alike=alike).decide(told.dense, told)[0]]  # type: ignore[arg-type]

    assert counts("magnitude", None) == counts("magnitude", True) != counts("magnitude", False)
    assert counts("obs", None) == counts("obs", False) != counts("obs", True)


def test_nothing_is_said_of_groups_that_stay_whole_where_there_are_none():
    told = context(planted(), target="params=0.6", method="magnitude")
    _, notes = Remove("magnitude").decide(told.dense, told)
    assert not any("stay whole" in note for note in notes)


def test_channels_go_by_their_states_and_groups_without_stay_whole():
    told = context(planted(), target="params=0.6", method="state-entropy")
    edits, notes = Remove("state-entropy").decide(told.dense, told)
    (edit,) = edits
    assert edit.layer == "0" and OFF not in edit.keep and ON not in edit.keep
    assert any("1 groups stay whole because state-entropy finds nothing to measure behind them: 2." in note for note in notes)


def test_a_channel_that_is_always_off_goes_for_nothing():
    told = context(planted(), target="params=0.9", method="state-entropy", align=1)
    remove = Remove("state-entropy", counts={"0": 7})
    images = next(told.data.test.batches(64)).inputs
    without, refitted = apply(Plan(remove.decide(told.dense, told)[0]), told.dense), remove(told.dense, told)
    with torch.no_grad():
        wanted = told.dense.module(*images)
        torch.testing.assert_close(without.module(*images), wanted, atol=1e-5, rtol=1e-5)
        # A ridge shrinks a little; that inputs lie at 100 and vary by 0.1 must not matter.
        torch.testing.assert_close(refitted.module(*images), wanted, atol=2e-3, rtol=0)


def test_a_model_without_rectifiers_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    told = context(net, target="params=0.6", method="state-entropy")
    with pytest.raises(UnsupportedModel, match="finds nothing to measure behind them"):
        Remove("state-entropy").decide(told.dense, told)


@pytest.mark.parametrize("name", ["random", "magnitude", "taylor"])
def test_every_other_score_has_a_number_for_every_channel(name: str):
    told = context(planted())
    groups = removable(told.dense.module, solve(told.dense.module, told.dense.inputs))
    scores = SCORES[name](told.dense, told, groups)
    assert {g.name: g.channels for g in groups} == {group: len(worth) for group, worth in scores.items()}
    again = SCORES[name](told.dense, told, groups)
    assert all(torch.equal(scores[group], again[group]) for group in scores)


def test_what_goes_is_the_sum_of_the_least():
    assert _what_goes(torch.tensor([3.0, -1.0, 1.0])).tolist() == [4.0, 1.0, 0.0, 0.0]


def test_frozen_weights_are_scored_like_others_and_stay_frozen():
    inputs = (torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    free = weight_products(trace(model, inputs), [(inputs, None)], torch.device("cpu"), 0)
    model[0].requires_grad_(False)
    frozen = trace(model, inputs)
    found = weight_products(frozen, [(inputs, None)], torch.device("cpu"), 0)
    assert found.keys() == free.keys() and all(torch.equal(found[name], free[name]) for name in free)
    assert not frozen.get_parameter("0.weight").requires_grad
