"""The depth stages on small nets, with a latency_cache that goes by multiply-accumulates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from compress.artifact import Artifact, apply
from compress.commands.analyze import analyze
from compress.commands.explain import depth_rows
from compress.data import open_data
from compress.edits import Linearize, Plan
from compress.edits import Merge as MergeEdit
from compress.edits import Relocate as RelocateEdit
from compress.errors import BadInput, Infeasible, UnsupportedModel
from compress.graph.linearize import activations
from compress.graph.trace.trace import trace
from compress.measure.cost import cost
from compress.measure.latency import Timing
from compress.pipeline.sequence import stages_of
from compress.recipe import make
from compress.selection import depth
from compress.selection.merge_candidates import candidates
from compress.selection.output_divergence import moved
from compress.stage import Context
from compress.stages import easier
from compress.stages.easier import Easier
from compress.stages.linearize import Linearize as LinearizeStage
from compress.stages.linearize import allowed
from compress.stages.merge import Merge
from compress.stages.nepenthe import Nepenthe
from compress.stages.relocate import Relocate
from compress.stages.remove import Remove
from compress.training import together

INPUT = (torch.zeros(1, 1, 8, 8),)


def by_macs(one: Artifact, other: Artifact) -> Timing:
    """As fast as it has few multiply-accumulates."""
    ratio = cost(other.module, other.inputs).macs / cost(one.module, one.inputs).macs
    return Timing(1.0, ratio, (ratio * 0.99, ratio * 1.01), 5)


def never_faster(one: Artifact, other: Artifact) -> Timing:
    return Timing(1.0, 1.0, (0.9, 1.1), 5)


def narrow(*rectifiers_: nn.Module) -> nn.Sequential:
    """Two wide layers between narrow ones: merged they are cheaper."""
    torch.manual_seed(0)
    first, second, third = rectifiers_ or (nn.ReLU(), nn.ReLU(), nn.ReLU())
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        first,
        nn.Conv2d(4, 32, 1),
        nn.BatchNorm2d(32),
        second,
        nn.Conv2d(32, 4, 1),
        third,
        nn.Flatten(),
        nn.Linear(256, 10),
    ).eval()


def artifact(net: nn.Module) -> Artifact:
    return Artifact(trace(net, INPUT), INPUT)


def context(dense: Artifact, race: object = by_macs, **settings: object) -> Context:
    data = open_data("digits")
    return Context(dense, data, make(data="digits", **settings), torch.device("cpu"), race=race)  # type: ignore[arg-type]


def test_depth_alone_refuses_what_it_could_not_do():
    alone = next(stage for stage in stages_of(make(method="depth")) if isinstance(stage, LinearizeStage))
    dense = artifact(narrow())
    alone.check(dense, context(dense, method="depth"))
    with pytest.raises(BadInput, match="stops by --depth"):
        alone.check(dense, context(dense, method="depth", target="macs=0.5"))
    straight = artifact(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
    with pytest.raises(UnsupportedModel, match="no activation"):
        alone.check(straight, context(straight, method="depth"))
    LinearizeStage().check(straight, context(straight))


def test_candidates_are_what_wins_a_race():
    net = artifact(narrow())
    found = candidates(net, by_macs)
    assert ("2", "5") in [one.segment.layers for one in found.candidates]
    one = next(one for one in found.candidates if one.segment.layers == ("2", "5"))
    assert one.segment.activations == ("4",)
    assert one.gain == pytest.approx(one.timing.ratio - 1)
    assert candidates(net, never_faster).candidates == ()
    assert candidates(net, never_faster).tried == found.tried > 0
    assert candidates(net, None).candidates[0].timing is None
    assert candidates(net, by_macs, lambda segment: not segment.activations).tried == 0


def test_analysis_tells_what_a_line_would_save():
    dense = artifact(narrow())
    rows = {row.activation: row for row in analyze(dense, context(dense)) if row.activation}
    one = next(c for c in candidates(dense, by_macs).candidates if c.segment.layers == ("2", "5"))
    assert rows["4"].linearized_saves_ms == pytest.approx(one.gain) and rows["4"].with_activations == ()
    assert rows["4"].linearized_ci95 == one.timing.ci95
    assert analyze(dense, context(dense, never_faster))[1].linearized_saves_ms == 0
    assert all(row.linearized_saves_ms is None for row in analyze(dense, context(dense, None)))
    assert rows["6"].linearized_saves_ms is None and rows["6"].stays, "nothing merges across it, and it says why"


def test_merging_changes_nothing_but_the_number_of_layers():
    dense = artifact(narrow())
    line = apply(Plan((Linearize("4", 32),)), dense)
    merged = Merge()(line, context(dense))
    assert [edit for edit in merged.plan.edits if isinstance(edit, MergeEdit)] == [MergeEdit(("2", "5"))]
    x = torch.randn(5, 1, 8, 8)
    assert torch.allclose(merged.module(x), line.module(x), atol=1e-5)
    assert sum(isinstance(m, nn.Conv2d) for m in merged.module.modules()) == 2
    assert any("2 layers were merged into 1" in note and "95 %" in note for note in merged.notes)


def test_merging_that_does_not_pay_is_said_and_not_done():
    dense = artifact(narrow())
    line = apply(Plan((Linearize("4", 32),)), dense)
    same = Merge()(line, context(dense, never_faster))
    assert same.module is line.module
    assert any("none is faster as one layer" in note for note in same.notes)

    def slower_as_a_whole(one: Artifact, other: Artifact) -> Timing:
        whole = any(n.op == "call_module" and n.target == "8" for n in one.module.graph.nodes)
        return Timing(1.0, 0.5, (0.4, 0.6), 5) if whole else by_macs(one, other)

    kept = Merge()(line, context(dense, slower_as_a_whole))
    assert kept.module is line.module
    assert any("left as they are" in note for note in kept.notes)


def test_a_model_with_nothing_to_merge_passes_without_a_word():
    dense = artifact(narrow())
    assert Merge()(dense, context(dense)) is dense


def test_padding_moves_to_the_front_of_stretches_that_will_merge():
    net = narrow(nn.Identity(), nn.Identity(), nn.ReLU())
    net[5] = nn.Conv2d(32, 4, 3, padding=1)
    dense = artifact(net)
    moved = Relocate()(dense, context(dense))
    assert [type(edit) for edit in moved.plan.edits] == [RelocateEdit]
    assert Merge()(moved, context(dense)).plan.edits[-1] == MergeEdit(moved.plan.edits[0].layers)
    assert not Relocate().needed(make(epochs=0))


def test_easier_takes_the_lowest_entropy_first_and_stops_where_quality_falls(monkeypatch: pytest.MonkeyPatch):
    dense = artifact(narrow())
    given = context(dense, method="easier", epochs=0.02, max_drop=5.0)
    bits = {"1": 0.9, "4": 0.2, "6": 0.5}
    monkeypatch.setattr(depth, "entropies", lambda found, _: {s.path: bits[s.path] for s in depth.free(found)})
    values = iter([0.9, 0.88, 0.86, 0.7])

    def held_out(*_: object):
        return depth.quality.Quality("top1", next(values), 100)

    monkeypatch.setattr(depth, "held_out", held_out)
    result = Easier()(dense, given)
    assert [edit.layer for edit in result.plan.edits] == ["4", "6"]
    assert [activation.path for activation in activations(result.module)] == ["1"]
    assert any("2 of 3 activations" in note and "3: 0.7000" in note for note in result.notes)


def test_easier_stops_at_its_target():
    dense = artifact(narrow())
    given = context(dense, method="easier", epochs=0.02, max_drop=100.0, target="activations=0.6")
    result = Easier()(dense, given)
    assert len(activations(result.module)) == 2


def test_cheap_takes_several_at_once_backs_off_and_trains_shortly(monkeypatch: pytest.MonkeyPatch):
    dense = artifact(narrow())
    given = context(dense, method="easier", epochs=0.2, max_drop=5.0, cheap=True)
    cost = {"1": 0.9, "4": 0.2, "6": 0.5}
    monkeypatch.setattr(easier, "moved", lambda found, each, _: [cost[edit.layer] for (edit,) in each])
    monkeypatch.setattr("compress.stages.easier._AT_ONCE", 1)  # all three at first
    values, epochs = iter([0.9, 0.7, 0.88, 0.8]), list[float]()

    def held_out(*_: object):
        return depth.quality.Quality("top1", next(values), 100)

    def noted(module: nn.Module, data: object, recipe: Any, *_: object, **more: object) -> Any:
        epochs.append(recipe.epochs)
        return real(module, data, recipe, *_, **more)  # type: ignore[arg-type]

    real = together.train
    monkeypatch.setattr("compress.training.together.train", noted)
    monkeypatch.setattr(depth, "held_out", held_out)
    result = Easier()(dense, given)
    assert [edit.layer for edit in result.plan.edits] == ["4"]
    assert result.plan.edits[0].slope, "a line, not the identity"
    assert any("3: 0.7000, 1: 0.8800, 2: 0.8000" in note for note in result.notes)
    assert epochs == pytest.approx([0.02] * 3)


def test_what_edits_cost_is_how_far_they_move_the_outputs():
    dense = artifact(narrow())
    given = context(dense, method="easier")
    lines = [Linearize(path, channels) for path, channels in depth.widths(dense).items()]
    images = next(given.data.train.batches(512, limit=512, seed=given.recipe.seed)).inputs
    with torch.no_grad():
        before, *after = (one.module(*images).log_softmax(1) for one in (dense, *(apply(Plan((x,)), dense) for x in lines)))
    expected = [float((before.exp() * (before - y)).sum(1).mean()) for y in after]
    shares: list[float] = []
    found = moved(dense, [[line] for line in lines] + [()], given, shares.append)
    assert found == pytest.approx([*expected, 0.0], rel=1e-3, abs=1e-6) and min(found[:3]) > 1e-5
    assert shares == [0.25, 0.5, 0.75, 1.0]


def test_all_rectifiers_of_entropy_zero_go_at_once():
    assert depth.lowest({"a": 0.4, "b": 0.0, "c": 0.0}, 3) == ["b", "c"]
    assert depth.lowest({"a": 0.4, "b": 0.0, "c": 0.0}, 1) == ["b"]
    assert depth.lowest({"a": 0.4, "b": 0.5}, 3) == ["a"]
    assert depth.lowest({"a": 0.4, "b": 0.5, "c": 0.1}, 3, 2) == ["c", "a"]


@pytest.mark.parametrize(
    ("net", "target", "error", "words"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
            None,
            UnsupportedModel,
            "no activation that an affine function can replace",
        ),
        (narrow(), "macs=0.5", Infeasible, "cannot be reached by depth alone.*activations=0 to activations=1"),
    ],
)
def test_what_depth_alone_cannot_do_is_refused(net: nn.Module, target: str | None, error: type[Exception], words: str):
    dense = artifact(net)
    with pytest.raises(error, match=words):
        Easier().check(dense, context(dense, method="easier", target=target))


def test_a_target_in_rectifiers_is_refused_where_channels_are_removed():
    dense = artifact(narrow())
    with pytest.raises(BadInput, match="activations cannot be met by removing channels"):
        Remove("magnitude").check(dense, context(dense, method="magnitude", target="activations=0.5"))


def test_explain_names_the_stretch_or_the_reason():
    net = narrow()
    net[6] = nn.Sequential(nn.ReLU(), nn.MaxPool2d(1))
    rows = {row.activation: row for row in depth_rows(artifact(net))}
    assert rows["4"].merges == ("2", "5") and rows["4"].macs < 0.5 and rows["4"].stays is None
    assert rows["6.0"].merges == () and "6.1" in rows["6.0"].stays


def test_rectifiers_become_lines_where_that_pays_and_quality_allows():
    dense = artifact(narrow())
    short = LinearizeStage()(dense, context(dense, depth=100.0))
    assert {type(edit) for edit in short.plan.edits} >= {Linearize}
    assert all(edit.slope for edit in short.plan.edits if isinstance(edit, Linearize))
    assert any("were linearized" in note for note in short.notes)
    each = [note for note in short.notes if " as one layer, " in note]
    first = next(edit for edit in short.plan.edits if isinstance(edit, Linearize))
    assert each and first.layer in each[0] and "saves" in each[0] and "points" in each[0]
    merged = Merge()(short, context(dense))
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in merged.module.modules()) < 4
    x = torch.randn(3, 1, 8, 8)
    assert torch.allclose(merged.module(x), short.module(x), atol=1e-4)


def test_lines_that_cost_too_much_are_not_drawn(monkeypatch: pytest.MonkeyPatch):
    dense = artifact(narrow())
    monkeypatch.setattr("compress.stages.linearize.drop", lambda start, now: 3.0)
    same = LinearizeStage()(dense, context(dense, depth=1.0))
    assert same.module is dense.module
    assert any("none keeps to 1 point of" in note for note in same.notes)


def test_where_nothing_is_faster_every_rectifier_stays():
    dense = artifact(narrow())
    same = LinearizeStage()(dense, context(dense, never_faster))
    assert same.module is dense.module
    assert any("merging does not pay here" in note for note in same.notes)


@pytest.mark.parametrize(
    ("settings", "points"), [({}, 1.0), ({"epochs": 0}, 0.0), ({"epochs": 0, "depth": 2.0}, 2.0), ({"depth": 0.0}, 0.0)]
)
def test_how_much_depth_may_cost(settings: dict[str, float], points: float):
    assert allowed(make(**settings)) == points
    assert LinearizeStage().needed(make(**settings)) == (points > 0)


@pytest.mark.parametrize(("order", "kinds"), [("width-depth", ["Keep", "Linearize"]), ("depth-width", ["Linearize", "Keep"])])
def test_width_and_depth_in_either_order(order: str, kinds: list[str]):
    dense = artifact(narrow())
    given = context(dense, order=order, depth=100.0, epochs=0, target="params=0.6", calibration=64)
    shorter = dense
    for stage in stages_of(given.recipe):
        shorter = stage(shorter, given)
    found = [type(edit).__name__ for edit in shorter.plan.edits]
    assert list(dict.fromkeys(kind for kind in found if kind in kinds)) == kinds
    assert "Merge" in found
    again = apply(shorter.plan, dense)
    assert [p.shape for p in again.module.parameters()] == [p.shape for p in shorter.module.parameters()]


def test_nepenthe_brings_layers_to_entropy_zero_and_takes_them_out():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10)).eval()
    with torch.no_grad():
        net[3].bias += 100.0  # always on
    dense = artifact(net)
    result = Nepenthe()(dense, context(dense, method="nepenthe", epochs=0.1, max_drop=100.0))
    gone = [edit.layer for edit in result.plan.edits if isinstance(edit, Linearize)]
    assert "4" in gone
    assert len(activations(result.module)) == 2 - len(gone)
    weights = result.module.get_submodule("1").weight
    assert (weights == 0).float().mean() > 0.4
    assert any("activations to entropy 0" in note for note in result.notes)
    line = next(edit for edit in result.plan.edits if edit.layer == "4")
    assert line.slope == pytest.approx([1.0] * 16, abs=1e-4) and line.offset == pytest.approx([0.0] * 16, abs=1e-2)
