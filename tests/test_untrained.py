"""Methods that prune a net as it was before its training: lottery tickets, learned sensitivity, SNIP."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compress.artifact import Artifact
from compress.commands import sensitivity
from compress.commands.sensitivity import agreement
from compress.data import from_arrays
from compress.entropy import ranking
from compress.errors import BadInput, Infeasible
from compress.graph.trace.trace import trace
from compress.measure.cost import cost
from compress.pipeline.prepare import prepare
from compress.recipe import make
from compress.selection.uniform_width import goal
from compress.stage import Context
from compress.stages import lottery as module
from compress.stages.lottery import Lottery
from compress.stages.sensitivity import Sensitivity, channels_worth
from compress.training import reinitialized, train
from compress.training.initial_weights import beginning
from compress.training.masks import masked, prunable, unmasked
from compress.training.saliency import CRITERIA
from compress.training.together import How

INPUT = (torch.zeros(1, 1, 8, 8),)
QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 32, "lr": 1e-2, "initial": "drawn", "prune": 0.5, "method": "lottery"}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def context(labels: bool = True, **settings: Any) -> Context:
    """Images of four kinds: one quarter of each is bright."""
    random = np.random.default_rng(0)
    kinds = np.arange(256) % 4
    images = random.standard_normal((256, 1, 8, 8)).astype(np.float32)
    for kind in range(4):
        images[kinds == kind, :, 4 * (kind // 2) : 4 * (kind // 2) + 4, 4 * (kind % 2) : 4 * (kind % 2) + 4] += 1.5
    arrays = {"x_train": images, "x_test": images[:64]}
    if labels:
        arrays |= {"y_train": kinds, "y_test": kinds[:64]}
    dense = Artifact(trace(net(), INPUT), INPUT)
    return Context(dense, from_arrays(arrays), make(**{**QUICK, **settings}), torch.device("cpu"))


def zeros(artifact: Artifact) -> float:
    weights = [artifact.module.get_submodule(path).weight for path in prunable(artifact.module)]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


# ---- which weights stay ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of", "expected"), [("remaining", [1.0, 0.8, 0.64, 0.512, 0.4096, 0.4]), ("original", [1.0, 0.8, 0.6, 0.4])]
)
def test_levels_go_down_to_the_target(of: Any, expected: list[float]):
    found = ranking.levels(0.4, 0.2, of)
    assert found[-1] == 0.4 and found == pytest.approx([*expected[: len(found) - 1], 0.4])
    assert all(a > b for a, b in itertools.pairwise(found))


def test_each_layer_keeps_its_share_or_all_are_ranked_together():
    scores = {"a": torch.tensor([4.0, 3.0, 2.0, 1.0]), "b": torch.tensor([0.4, 0.3, 0.2, 0.1])}
    masks = {path: torch.ones(4, dtype=torch.bool) for path in scores}
    apart, together = (ranking.stay(scores, masks, 0.5, together=flag) for flag in (False, True))
    assert {path: mask.tolist() for path, mask in apart.items()} == {path: [True, True, False, False] for path in scores}
    assert together["a"].tolist() == [True, True, True, False] and together["b"].tolist() == [True, False, False, False]
    assert ranking.left(apart) == ranking.left(together) == 0.5


def test_what_is_masked_stays_masked_and_no_layer_becomes_empty():
    scores = {"a": torch.tensor([9.0, 1.0, 2.0]), "b": torch.tensor([1e-3])}
    masks = {"a": torch.tensor([False, True, True]), "b": torch.tensor([True])}
    for together in (True, False):
        for left in (0.5, 0.01):
            found = ranking.stay(scores, masks, left, together=together)
            assert not found["a"][0] and found["a"].any() and found["b"].all()


# ---- masks in training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_masked_weights_stay_zero_and_negative_ones_train(optimizer: str):
    told = context(optimizer=optimizer, weight_decay=0.1)
    dense = told.dense.module
    masks = ranking.stay(
        {p: dense.get_submodule(p).weight.detach().abs() for p in prunable(dense)}, prunable(dense), 0.3, together=True
    )
    done = unmasked(train(masked(dense, masks), told.data, told.recipe).module, dense)
    for path, mask in masks.items():
        before, after = (m.get_submodule(path).weight.detach() for m in (dense, done))
        assert (after[~mask] == 0).all()
        assert (after != before)[mask & (before < 0)].all() and (after != before)[mask & (before > 0)].all()


# ---- lottery ---------------------------------------------------------------------------------------------------------------


def test_tickets_are_nested_and_go_back_to_the_weights_that_training_began_with(monkeypatch: pytest.MonkeyPatch):
    told = context(target="weights=0.25")
    begun: dict[str, Any] = {}
    real = module._trained

    def watched(ticket: Any, told: Context, name: str, detail: str) -> Any:
        begun[name] = ticket
        return real(ticket, told, name, detail)

    monkeypatch.setattr(module, "_trained", watched)
    levels = list(Lottery().levels(told.dense, told))
    assert [(level.variant, level.number, round(level.left, 2)) for level in levels] == [
        (variant, number, left) for variant in ("original", "random") for number, left in enumerate((1.0, 0.5, 0.25))
    ]
    drawn = reinitialized(told.dense.module, 0)[0].state_dict()
    for name in ("original-1", "original-2"):
        assert all(torch.equal(value, drawn[key]) for key, value in begun[name].artifact.module.state_dict().items())
    weights = [begun[f"random-{n}"].artifact.module.get_submodule("3").weight for n in (1, 2)]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], drawn["3.weight"])
    for variant in ("original", "random"):
        one, two = (begun[f"{variant}-{n}"].masks for n in (1, 2))
        assert all((two[path] & ~one[path]).sum() == 0 for path in one)
    assert zeros(levels[2].artifact) == pytest.approx(0.75, abs=0.01)


def test_the_largest_trained_weights_stay():
    told = context(target="weights=0.5")
    dense, ticket = [level.artifact.module for level in Lottery().levels(told.dense, told)][:2]
    trained, kept = dense.get_submodule("3").weight.abs(), ticket.get_submodule("3").weight != 0
    assert trained[kept].min() >= trained[~kept].max()


def test_rewound_weights_are_those_after_that_epoch():
    told = context(target="weights=0.5", rewind=1, variants=("original",))
    first, rewound = module._trained(module._Ticket(told.dense, prunable(told.dense.module)), told, "first", "")
    once, _ = module._trained(
        module._Ticket(told.dense, {}), replace(told, recipe=told.recipe.model_copy(update={"rewind": 0})), "first", ""
    )
    before, after, end = (a.module.get_submodule("3").weight for a in (told.dense, rewound, first))
    assert not torch.equal(before, after) and not torch.equal(after, end)
    torch.testing.assert_close(end, once.module.get_submodule("3").weight)


def test_a_whole_stage_tells_of_both_arms_and_draws_them():
    told = context(target="weights=0.25")
    done = Lottery()(told.dense, told)
    (curve,) = done.curves
    assert [(s.name, [round(x) for x in s.x]) for s in curve.series] == [("original", [100, 50, 25]), ("random", [100, 50, 25])]
    assert curve.levels["dense"] == curve.series[0].y[0] > 60
    assert any(note.startswith("Variant original:") for note in done.notes) and "zeros in the file" in done.notes[-1]
    assert (
        zeros(done) == pytest.approx(0.75, abs=0.01) and cost(done.module, INPUT).params == cost(told.dense.module, INPUT).params
    )


def test_channels_of_tickets_really_go():
    told = context(target="params=0.4", structure="channels", variants=("original",))
    levels = list(Lottery().levels(told.dense, told))
    params = [cost(level.artifact.module, INPUT).params for level in levels]
    assert params[0] > params[1] > params[2] and params[2] <= 0.4 * params[0]
    assert levels[-1].left == pytest.approx(params[2] / params[0])
    assert {edit.layer for edit in levels[-1].artifact.plan.edits} == {"0", "3"}


def test_what_lies_on_the_desk_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told = replace(context(target="weights=0.5"), scratch=tmp_path / "scratch")
    calls: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(*args, **kwargs)

    monkeypatch.setattr("compress.training.together.train", counted)
    with pytest.raises(KeyboardInterrupt):
        Lottery()(told.dense, told)
    again = Lottery()(told.dense, told)
    assert len(calls) == 4  # the dense net and two variants, one of them twice
    straight = Lottery()(told.dense, replace(told, scratch=None))
    assert again.notes == straight.notes
    for key, value in straight.module.state_dict().items():
        torch.testing.assert_close(again.module.state_dict()[key], value)


@pytest.mark.parametrize(
    ("settings", "labels", "said"),
    [
        ({"initial": None}, True, "Without either, --variants random is possible"),
        ({"target": "macs=0.5"}, True, "cannot be met by masking single weights"),
        ({"target": "weights=0.5", "structure": "channels"}, True, "needed is params=SHARE or macs=SHARE"),
        ({"epochs": 0}, True, "Give --epochs above 0"),
        ({"rewind": 2}, True, "needed is less than --epochs, which is 2"),
        ({"rewind": 1, "initial": "init.pt"}, True, "with --initial drawn only"),
        ({}, False, "needs labels, and the data has none"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(settings: dict[str, Any], labels: bool, said: str):
    told = context(labels, **settings)
    with pytest.raises(BadInput, match=said):
        Lottery().check(told.dense, told)


def test_other_arms_need_no_initial_weights_and_channels_have_an_end():
    told = context(initial=None, variants=("random",), target="weights=0.5")
    Lottery().check(told.dense, told)
    told = context(target="params=0.001", structure="channels")
    with pytest.raises(Infeasible, match="removable groups allow params="):
        Lottery().check(told.dense, told)


# ---- sensitivity -----------------------------------------------------------------------------------------------------------


def test_a_weight_that_no_input_reaches_is_worth_nothing():
    told = context(method="sensitivity", weight_decay=0.0)
    with torch.no_grad():
        told.dense.module.get_submodule("0").bias[3] = -1e3  # its activation is always off
    for name in ("learned", "snip"):
        scores = CRITERIA[name](told.dense.module, told, How("sensitivity"))
        rows = scores["0"].flatten(1).sum(1)
        assert rows[3] < 1e-4 * rows.median(), name
        assert scores["3"].view(16, 8, 36)[:, 3].abs().max() < 1e-4 * scores["3"].mean(), name


def test_learned_sensitivity_is_the_equation(monkeypatch: pytest.MonkeyPatch):
    told = context(method="sensitivity", epochs=1, batch_size=256, optimizer="sgd", warmup=0.0, clip=0.0, weight_decay=0.0)
    before = told.dense.module.get_submodule("5").weight.detach().clone()
    scores = CRITERIA["learned"](told.dense.module, told, How("sensitivity"))["5"]
    after = train(told.dense.module, told.data, told.recipe).module.get_submodule("5").weight.detach()
    moved = (after - before).abs()
    # One step of Nesterov momentum moves a weight by lr (1 + 0.9) times its gradient.
    gradient = moved / (told.recipe.lr * 1.9)
    torch.testing.assert_close(scores, moved + told.recipe.lr * (before * gradient).abs(), rtol=1e-3, atol=1e-8)


@pytest.mark.parametrize("criterion", ["learned", "snip", "random"])
@pytest.mark.parametrize(("structure", "target"), [("weights", "weights=0.2"), ("channels", "params=0.4")])
def test_the_pruned_net_is_trained_from_its_initial_weights(criterion: Any, structure: str, target: str):
    told = context(method="sensitivity", structure=structure, target=target, scope="global")
    done = Sensitivity(criterion)(told.dense, told)
    assert float(next(n for n in done.notes if "are left" in n).split("%")[0]) <= 100 * float(target.partition("=")[2]) + 0.1
    if structure == "weights":
        assert zeros(done) == pytest.approx(0.8, abs=0.01) and not done.plan.edits
    else:
        assert {edit.layer for edit in done.plan.edits} == {"0", "3"}
    images = next(told.data.test.batches(64))
    assert (done.module(*images.inputs).argmax(1) == images.target).float().mean() > 0.5


def test_trainings_on_hardly_other_batches_agree_more_where_they_began_with_the_same_weights():
    told = context(method="sensitivity", epochs=1, batch_size=230, optimizer="sgd")
    rows = agreement(told)
    assert [(row.layer, row.weights) for row in rows] == [("0", 72), ("3", 4608), ("5", 64)]
    assert all(0 <= share <= 1 for row in rows for share in (row.same_learned, row.same_absolute, row.other_learned))
    middle = rows[1]
    assert middle.same_learned > middle.other_learned and middle.same_absolute < middle.other_absolute


def test_the_diagnostic_counts_slight_and_large_differences():
    one = torch.tensor([0.0, 1.0, 2.0, 3.0])  # of standard deviation 1.118
    assert sensitivity._shares(one, one + torch.tensor([0.0, 0.1, 1.0, 1.2])) == (0.25, 0.25)


def test_the_diagnostic_needs_labels_and_epochs():
    for told in (context(labels=False, method="sensitivity"), context(method="sensitivity", epochs=0)):
        with pytest.raises(BadInput, match="trains the net from the beginning"):
            agreement(told)


def test_a_channel_is_worth_the_mean_over_its_filters():
    from compress.graph.channels.solve import solve

    told = context()
    groups = solve(told.dense.module, INPUT).groups
    scores = {path: torch.rand(mask.shape) for path, mask in prunable(told.dense.module).items()}
    (first,) = (g for g in groups if g.name == "0")
    torch.testing.assert_close(channels_worth(scores, told.dense.module, first), scores["0"].flatten(1).mean(1).double())


# ---- the checkpoint of the initial weights ---------------------------------------------------------------------------------


def test_initial_weights_come_from_a_checkpoint_of_the_same_architecture(tmp_path: Path):
    images = np.random.default_rng(0).standard_normal((40, 1, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x_train=images, y_train=np.arange(40) % 4, x_test=images, y_test=np.arange(40) % 4)
    torch.save(net(), tmp_path / "model.pt")
    first = net()
    with torch.no_grad():
        first[0].weight.fill_(0.5)
    torch.save(first, tmp_path / "initial.pt")
    torch.save(nn.Sequential(*list(net())[:-1], nn.Linear(16, 5)), tmp_path / "other.pt")
    recipe = make(model=str(tmp_path / "model.pt"), data=str(tmp_path / "data.npz"), initial=str(tmp_path / "initial.pt"))
    told, _ = prepare(recipe)
    assert told.initial is not None
    begun = beginning(told.dense, told)
    assert (begun.module.get_submodule("0").weight == 0.5).all() and begun.inputs is told.dense.inputs
    with pytest.raises(BadInput, match=r"other\.pt is of another architecture: 5\.weight is \(5, 16\) there and \(4, 16\) in"):
        prepare(recipe.model_copy(update={"initial": str(tmp_path / "other.pt")}))
    with pytest.raises(BadInput, match="missing"):
        prepare(recipe.model_copy(update={"initial": str(tmp_path / "missing.pt")}))


@pytest.mark.parametrize(("structure", "unit"), [("weights", "weights"), ("channels", "macs")])
def test_without_a_target_the_default_is_one_that_fits_the_structure(structure: str, unit: str):
    recipe = make(method="sensitivity", structure=structure).model_copy(update={"target": None})
    found, share = goal(recipe)
    assert found == unit and 0 < share < 1
