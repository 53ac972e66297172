"""Removal is exact: on every structure that the solver knows, and it refuses what it cannot do."""

import copy

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from models import MODELS, random_model, randomise
from oracles import distance, outputs, random_edits, scrambled
from torch import nn

from compress.edits import Keep, Plan, from_json
from compress.errors import BadInput, PlanMismatch
from compress.graph.channels.solve import solve
from compress.graph.surgery.remove import keep, mask
from compress.graph.trace.trace import trace

EXACT = 2e-5
"""Relative. Removal leaves zeros out of sums, so float32 adds the same numbers in another order: 1e-7 a sum, then depth."""


def solved(name, seed=0):
    model, inputs = random_model(name, seed)
    module = trace(model, inputs)
    return module, inputs, solve(module, inputs)


def batch(name, size, seed):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(size, *shape, generator=random) for shape in MODELS[name].shapes]


@pytest.mark.parametrize("name", MODELS)
def test_removed_equals_masked_and_the_rest_cannot_see_it(name):
    module, inputs, channels = solved(name)
    before = copy.deepcopy(module.state_dict())
    for seed in range(2):
        edits = random_edits(channels.removable, seed)
        removed, masked = keep(module, channels, edits), mask(module, channels, edits)
        for size in (1, 2):
            x = batch(name, size, seed)
            assert distance(outputs(removed, x), outputs(masked, x)) < EXACT
        assert list(removed.state_dict()) == list(before)
        smaller = sum(p.numel() for p in removed.parameters())
        assert smaller < sum(p.numel() for p in module.parameters()) or all(len(e.keep) == e.channels for e in edits)
        again = solve(removed, inputs)
        # One head that is left has channels of its own, which may go from then on.
        assert {g.name for g in again.groups} >= {g.name for g in channels.groups}
        twice = random_edits([g for g in again.removable if g.channels > 1], seed + 7)
        second, expected = keep(removed, again, twice), mask(removed, again, twice)
        assert distance(outputs(second, x), outputs(expected, x)) < EXACT
    after = module.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("name", MODELS)
def test_channels_whose_readers_are_zeroed_carry_nothing(name):
    module, _, channels = solved(name)
    x = batch(name, 2, 0)
    dense = outputs(module, x)
    moved = []
    # What counts as zeros in a norm is no noise: there keep and mask agree, and nothing else can be said.
    zeroed = {False: channels.zeroed, True: channels.within.zeroed if channels.within is not None else frozenset()}
    for number, group in enumerate(g for g in channels.removable if zeroed[g.inner].isdisjoint(g.labels)):
        (edit,) = random_edits([group], number)
        calm = outputs(mask(module, channels, [edit]), x)
        assert distance(outputs(scrambled(module, channels, edit, number), x), calm) < EXACT, group.name
        moved.append(distance(outputs(scrambled(module, channels, edit, number, masked=False), x), dense))
    # The same noise with the readers left in place must be seen, or the test above proves nothing.
    assert sum(m > 1e-3 for m in moved) >= len(moved) / 2


@pytest.mark.parametrize("name", MODELS)
def test_an_empty_plan_changes_no_bit(name):
    module, _, channels = solved(name)
    model, _ = random_model(name)
    x = batch(name, 2, 1)
    full = [Keep(g.name, g.channels, tuple(range(g.channels))) for g in channels.groups]
    for same in (module, keep(module, channels, []), keep(module, channels, full), mask(module, channels, [])):
        assert all(torch.equal(a, b) for a, b in zip(outputs(same, x), outputs(model, x), strict=True))


@pytest.mark.parametrize("name", ["residual", "depthwise", "attention_fused", "dense_block", "layers_as_functions"])
def test_a_compressed_model_trains(name):
    module, _, channels = solved(name)
    small = keep(module, channels, random_edits(channels.removable, 0)).train()
    out = small(*batch(name, 4, 0))
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in small.parameters())


def test_one_edit_removes_what_it_names_and_nothing_else():
    module, _, channels = solved("plain")
    small = keep(module, channels, [Keep("0.0", 8, (0, 2, 5))])
    conv, norm, reader = small.get_submodule("0.0"), small.get_submodule("0.1"), small.get_submodule("1.0")
    assert torch.equal(conv.weight, module.get_submodule("0.0").weight[[0, 2, 5]])
    assert torch.equal(norm.running_var, module.get_submodule("0.1").running_var[[0, 2, 5]])
    assert torch.equal(reader.weight, module.get_submodule("1.0").weight[:, [0, 2, 5]])
    assert (conv.out_channels, norm.num_features, reader.in_channels, reader.out_channels) == (3, 3, 3, 12)


def test_heads_are_removed_whole():
    module, _, channels = solved("attention_fused")
    group = channels.group("qkv")
    assert group.channels == 4
    small = keep(module, channels, [Keep("qkv", 4, (1, 3))])
    assert tuple(small.get_submodule("qkv").weight.shape) == (12, 8)
    rows = [2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23]
    assert torch.equal(small.get_submodule("qkv").weight, module.get_submodule("qkv").weight[rows])


@pytest.mark.filterwarnings("ignore:LSTM with projections")  # torch has no fast kernel for them
def test_projections_of_units_can_go_and_the_units_stay():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.units, self.head = nn.LSTM(8, 9, 2, proj_size=6, batch_first=True, bidirectional=True), nn.Linear(12, 4)

        def forward(self, x):
            return self.head(self.units(x)[0])

    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    module = trace(Tagger(), (x,))
    channels = solve(module, (x,))
    (group,) = channels.removable
    assert group.channels == 6 and "projects its units" in channels.group("units").frozen
    edits = random_edits([group], 0)
    small = keep(module, channels, edits)
    assert small.get_submodule("units").proj_size == 4
    assert distance(outputs(small, [x]), outputs(mask(module, channels, edits), [x])) < EXACT


def test_a_recurrent_layer_has_the_numbers_of_its_weights():
    module, _, channels = solved("recurrent_layers")
    edits = [Keep("before", 12, tuple(range(5))), Keep("tall", 6, (1, 4)), Keep("deep.0", 5, (0, 2, 3))]
    small = keep(module, channels, edits)
    tall, deep, last = (small.get_submodule(n) for n in ("tall", "deep.0", "last"))
    assert (tall.input_size, tall.hidden_size, deep.input_size, deep.hidden_size) == (5, 2, 7, 3)
    assert (last.input_size, last.hidden_size) == (6, 8)
    assert torch.equal(
        tall.weight_ih_l1, module.get_submodule("tall").weight_ih_l1[[r + 6 * g for g in range(4) for r in (1, 4)]][:, [1, 4]]
    )


def test_tied_weights_stay_tied():
    module, _, channels = solved("tied_layers")
    small = keep(module, channels, random_edits(channels.removable, 0))
    assert small.get_submodule("first").weight is small.get_submodule("second").weight


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Keep("nowhere", 8, (0,)), "names layer nowhere, which this model does not have"),
        (Keep("0.0", 9, (0,)), "expects 9 channels on 0.0, this model has 8"),
        (Keep("3.2", 5, (0,)), "removes channels of 3.2, which must stay: output is the model's output"),
    ],
)
def test_a_plan_for_another_model_is_refused(edit, message):
    module, _, channels = solved("plain")
    for carry_out in (keep, mask):
        with pytest.raises(PlanMismatch, match=message):
            carry_out(module, channels, [edit])
    with pytest.raises(PlanMismatch, match=r"names 0\.0 twice"):
        keep(module, channels, [Keep("0.0", 8, (0,)), Keep("0.0", 8, (0,))])


@given(
    st.lists(st.tuples(st.text(min_size=1), st.sets(st.integers(0, 99), min_size=1)), max_size=5), st.text(), st.integers(1, 64)
)
def test_a_plan_survives_json(edits, method, align):
    plan = Plan(tuple(Keep(layer, 100, tuple(sorted(kept))) for layer, kept in edits), method, align)
    assert from_json(plan.to_json()) == plan
    assert from_json(plan.to_json()).digest == plan.digest


@pytest.mark.parametrize("kept", [(), (3, 1), (1, 1), (-1,), (100,)])
def test_a_keep_that_cannot_be_is_refused(kept):
    with pytest.raises(BadInput, match="distinct, ascending numbers"):
        Keep("conv", 100, kept)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(MODELS)), st.integers(1, 10_000), st.floats(0.05, 0.95))
def test_any_share_of_any_model_is_removed_exactly(name, seed, share):
    module, _, channels = solved(name, seed)
    edits = random_edits(channels.removable, seed, share)
    x = batch(name, 2, seed)
    assert distance(outputs(keep(module, channels, edits), x), outputs(mask(module, channels, edits), x)) < EXACT


def test_a_mistake_of_the_solver_would_be_seen():
    """Negative control: one shifted consumer index, as a solver that mixes up a shuffle would give."""
    module, _, channels = solved("shuffle_by_view")
    wrong = dict(channels.axes)
    role, labels = wrong["b.0.weight", 1]
    wrong["b.0.weight", 1] = (role, labels.roll(1))
    edits = [Keep("a.0", channels.group("a.0").channels, (0, 1, 2))]
    broken = copy.copy(channels)
    object.__setattr__(broken, "axes", wrong)
    x = batch("shuffle_by_view", 2, 0)
    removed = outputs(keep(module, channels, edits), x)
    assert distance(removed, outputs(mask(module, channels, edits), x)) < EXACT
    assert distance(removed, outputs(mask(module, broken, edits), x)) > 100 * EXACT
    assert isinstance(module.get_submodule("b.0"), nn.Conv2d)


FAMILIES = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_0",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_32",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_removed_equals_masked_on_whole_families(name):
    torch.manual_seed(0)
    options = {"init_weights": False} if name == "googlenet" else {"image_size": 64} if name == "vit_b_32" else {}
    model = torchvision.models.get_model(name, weights=None, **options).eval()
    randomise(model)
    x = torch.randn(2, 3, 64, 64)
    module = trace(model, (x[:1],))
    channels = solve(module, (x[:1],))
    edits = random_edits(channels.removable, 0)
    assert len(edits) > 4
    assert distance(outputs(keep(module, channels, edits), [x]), outputs(mask(module, channels, edits), [x])) < 5 * EXACT
    for number, edit in enumerate(edits[::5]):
        calm = outputs(mask(module, channels, [edit]), [x])
        assert distance(outputs(scrambled(module, channels, edit, number), [x]), calm) < 5 * EXACT, edit.layer
