"""Which channels belong together, which can go, and why the others stay."""

import copy
import operator
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import MODELS, Net, block, conv, head, random_model
from torch import nn

from compress.errors import PlanMismatch
from compress.graph.channels import op_rules, propagation
from compress.graph.channels.solve import solve
from compress.graph.trace.shapes import note_shapes
from compress.graph.trace.trace import trace


def solved(name, seed=0):
    model, inputs = random_model(name, seed)
    return solve(trace(model, inputs), inputs)


def facts(channels):
    return [
        (g.name, g.channels, g.frozen is None, tuple((m.tensor, m.dim, m.role, tuple(m.index.tolist())) for m in g.members))
        for g in channels.groups
    ]


@pytest.mark.parametrize("name", MODELS)
def test_every_structure_has_the_groups_it_should_have(name):
    channels, expected = solved(name), MODELS[name]
    assert channels.removable
    assert {n: channels.group(n).frozen for n in expected.removable} == dict.fromkeys(expected.removable)
    for group, reason in expected.frozen.items():
        assert reason in (channels.group(group).frozen or f"{group} is not frozen")


@pytest.mark.parametrize("name", MODELS)
def test_every_position_of_every_axis_belongs_to_one_group(name):
    channels = solved(name)
    for key in channels.axes:
        members = [m.index for g in channels.groups for m in g.members if (m.tensor, m.dim) == key]
        owners = torch.stack([index >= 0 for index in members]).sum(0)
        assert bool((owners == 1).all()), key
    for group in channels.groups:
        for member in group.members:
            inside = member.index[member.index >= 0]
            assert torch.equal(torch.unique(inside), torch.arange(group.channels)), (group.name, member.tensor)
        assert group.frozen is not None or group.channels > 1


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(sorted(MODELS)), st.integers(1, 10_000))
def test_classes_do_not_depend_on_weights_or_data(name, seed):
    if name != "fixed_permutation":
        assert facts(solved(name, seed)) == facts(solved(name))


@pytest.mark.parametrize("name", [n for n in MODELS if n != "squeezed_to_a_vector"])
def test_classes_do_not_depend_on_the_batch(name):
    # squeeze() without an axis gives another rank for a batch of 1: that model differs itself.
    model, inputs = random_model(name)
    pair = tuple(torch.cat([x, x]) for x in inputs)
    assert facts(solve(trace(model, pair), pair)) == facts(solve(trace(model, inputs), inputs))


def test_solving_leaves_the_model_alone():
    model, inputs = random_model("dense_block")
    module = trace(model, inputs)
    before, code = copy.deepcopy(module.state_dict()), module.code
    assert facts(solve(module, inputs)) == facts(solve(module, inputs))
    assert module.code == code
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_a_shuffle_is_followed_to_the_channel():
    (reader,) = [m for m in solved("shuffle_layer").group("0.0").members if m.tensor == "2.0.weight"]
    # 8 channels in 2 groups: 0 1 2 3 | 4 5 6 7 become 0 4 1 5 2 6 3 7; the pairs (0 4), (1 5) ... go together.
    assert reader.index.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_few_wide_groups_lose_positions_and_many_narrow_ones_go_whole():
    assert [g.channels for g in solved("few_wide_groups").removable] == [6, 12, 5]
    assert solved("few_wide_groups_that_a_norm_ties").group("1.0").channels == 3
    assert solved("grouped").group("0.0").channels == 4
    assert [g.channels for g in solved("grouped_with_shuffle").removable] == [6, 2, 4]


def test_a_flattened_channel_is_read_at_all_of_its_positions():
    (reader,) = [m for m in solved("flatten_into_linear").group("0.0").members if m.tensor == "2.weight"]
    assert reader.index.tolist() == [c for c in range(4) for _ in range(64)]


def test_a_group_names_its_producers_and_consumers():
    group = solved("residual").group("stem.0")
    assert group.producers == ("stem.0", "b.0")
    assert group.consumers == ("a.0", "head.2")
    assert group.modules("through") == ("stem.1", "b.1")


def test_a_group_that_a_norm_freezes_names_the_norm():
    x = torch.randn(1, 8)
    model = nn.Sequential(nn.Linear(8, 12), nn.LayerNorm(12), nn.Linear(12, 4)).eval()
    model.insert(1, nn.Sigmoid())
    group = solve(trace(model, (x,)), (x,)).group("0")
    assert group.frozen.startswith("2 takes its statistics") and group.modules("through") == ("2",)
    assert group.consumers == ("3",)


def test_a_number_among_the_attributes_of_the_graph_is_a_number():
    x = torch.randn(1, 3, 8, 8)
    module = trace(nn.Sequential(block(3, 8), head(8)), (x,))
    module.factor = 2.0
    (pool,) = (n for n in module.graph.nodes if n.target == "1.0")
    with module.graph.inserting_before(pool):
        number = module.graph.create_node("get_attr", "factor")  # get_attr() itself warns of what is no tensor
        scaled = module.graph.call_function(operator.mul, (pool.args[0], number))
    pool.replace_input_with(pool.args[0], scaled)
    module.recompile()
    note_shapes(module, module.graph, (x,))
    assert [g.name for g in solve(module, (x,)).removable] == ["0.0"]


def test_a_group_that_does_not_exist_is_refused():
    with pytest.raises(PlanMismatch, match="names layer nowhere"):
        solved("plain").group("nowhere")


def test_reasons_name_the_layer_and_the_line():
    reason = solved("group_norm_behind_a_sigmoid").group("0").frozen
    assert reason == "2 takes its statistics over all channels, so removing one would change the rest"
    reason = solved("unknown_operation").group("0.0").frozen
    assert reason.startswith("triu (models.py:") and reason.endswith("is not known to the solver")
    assert solved("opaque_part").group("0.0").frozen.startswith("1 cannot be traced (models.py:")


def test_a_rule_that_breaks_freezes_instead(monkeypatch):
    def broken(*_):
        raise RuntimeError("cannot broadcast")

    monkeypatch.setattr(op_rules, "spatial", broken)
    channels = solved("resized")
    assert channels.group("stem").frozen.startswith("max_pool2d (models.py:")
    assert "cannot be followed (RuntimeError)" in channels.group("stem").frozen


def test_a_rule_that_gives_another_shape_freezes_instead(monkeypatch):
    monkeypatch.setattr(op_rules, "reduced", lambda s, node, x, dims: x)
    channels = solved("squeeze_excite")
    assert "called in a way that the solver does not know" in channels.group("stem.0").frozen


@pytest.mark.parametrize("name", ["normalized_over_tokens", "normalized_over_channels"])
def test_an_axis_that_a_graph_leaves_out_is_the_default_of_the_function(name):
    # Tracing writes all arguments down; a stored graph need not.
    model, inputs = random_model(name)
    module = trace(model, inputs)
    before = facts(solve(module, inputs))
    (node,) = (n for n in module.graph.nodes if n.target is F.normalize)
    assert node.kwargs["dim"] == 1
    node.kwargs = {}
    assert facts(solve(module, inputs)) == before


def test_a_tensor_without_a_batch_axis_is_not_misread():
    model = Net(lambda s, x: s.b(F.relu(s.a(x[0]))).unsqueeze(0), a=conv(8, 8), b=conv(8, 8))
    x = torch.randn(1, 8, 8, 8)
    assert not solve(trace(model, (x,)), (x,)).removable


def test_parameters_that_an_unknown_operation_takes_stay():
    net = Net(lambda s, x: s.head(s.b(s.a(x)) + s.b.weight.flatten(1).triu().mean()), a=block(3, 8), b=conv(8, 6), head=head(6))
    x = torch.randn(1, 3, 8, 8)
    channels = solve(trace(net, (x,)), (x,))
    assert not [g for g in channels.removable if any(m.tensor == "b.weight" for m in g.members)]


def test_a_huge_parameter_in_the_graph_is_not_followed(monkeypatch):
    monkeypatch.setattr(propagation, "_FOLLOWED", 100)
    channels = solved("layer_norm_channels_last")
    assert channels.group("hidden").frozen is None
    monkeypatch.setattr(propagation, "_FOLLOWED", 7)
    channels = solved("frozen_batch_norm")
    assert channels.group("a").frozen.startswith("weight is too large to be followed entry by entry where reshape (models.py:")
    assert channels.group("b").frozen is None


def test_batch_norm_alone_has_one_class_per_channel():
    x = torch.randn(1, 3, 8, 8)
    model = nn.Sequential(
        conv(3, 8), nn.BatchNorm2d(8, affine=False), conv(8, 4), nn.BatchNorm2d(4, track_running_stats=False), head(4)
    )
    assert [g.channels for g in solve(trace(model.eval(), (x,)), (x,)).removable] == [8, 4]


@pytest.mark.parametrize(("tied", "rounds"), [(False, 1), (True, 2)])
def test_whole_groups_are_tried_only_where_they_may_leave_more(tied: bool, rounds: int, monkeypatch: pytest.MonkeyPatch):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.grouped, self.last = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 1, groups=2), nn.Conv2d(16, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x).relu()
            y = self.grouped(x).relu()
            return self.last(y + x if tied else y)

    module = sys.modules["compress.graph.channels.solve"]
    calls: list[int] = []
    monkeypatch.setattr(module, "read", lambda state, classes, before=module.read: calls.append(1) or before(state, classes))
    x = torch.randn(1, 3, 4, 4)
    channels = solve(trace(Tied().eval(), (x,)), (x,))
    assert len(calls) == rounds and sum(g.channels for g in channels.removable) == (8 if tied else 16)


@pytest.mark.parametrize("chosen", [0, 2])
@pytest.mark.parametrize("how", ["where", "nonzero", "boolean"])
def test_rows_that_values_choose_are_followed_and_stay_where_the_example_has_none(how: str, chosen: int):
    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.expert, self.last = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            where = x[:, 0] > (1e9 if chosen == 0 else -1e9)
            if how == "boolean":
                return self.last(x) + self.last(self.expert(x[where])).sum(0)
            rows = torch.where(where)[0] if how == "where" else where.nonzero()[:, 0]
            return self.last(x.index_add(0, rows, self.expert(x[rows])))

    x = torch.randn(2, 4)
    module = trace(Routed().eval(), (x,))
    channels = solve(module, (x,))
    groups = [g for g in channels.removable if any(m.tensor == "first.weight" for m in g.members)]
    if chosen:
        assert not [g for g in channels.groups if "chooses by values" in (g.frozen or "")]
    else:
        assert not groups and any("chooses by values, and nothing of the example" in (g.frozen or "") for g in channels.groups)
