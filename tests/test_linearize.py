"""Entropy and lines over a data set: the streaming passes, the edits that come of them, and what cannot be done."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import Branches, Net, block, conv, head
from oracles import distance, outputs
from torch import nn

from compress.artifact import Artifact, apply
from compress.commands.analyze import analyze
from compress.commands.explain import depth_rows
from compress.data import from_arrays
from compress.edits import Keep, Linearize, Plan, Relocate, from_json
from compress.entropy.estimators import easier, egp
from compress.entropy.moments import Positions
from compress.entropy.state import count
from compress.errors import EmptyData, UnsupportedModel
from compress.graph.channel_affine import ChannelAffine
from compress.graph.linearize import channels_at
from compress.graph.trace.trace import trace
from compress.recipe import make
from compress.refit import fit_activations, refit
from compress.stage import Context
from compress.statistics.activation_states import data_free, knees
from compress.statistics.collect import collect
from compress.statistics.layers import layers

SHAPE = (3, 8, 8)


def context(model, **settings):
    """A net with settled norms, and images that have structure."""
    random = torch.Generator().manual_seed(0)
    x = nn.functional.interpolate(torch.randn(96, 3, 4, 4, generator=random), size=8, mode="bilinear")
    with torch.no_grad():
        for _ in range(20):
            model.train()(x)
    inputs = (torch.zeros(1, *SHAPE),)
    parts = {"x": x.numpy(), "y": np.arange(96) % 5}
    data = from_arrays({f"{name}_{part}": array for part in ("train", "val", "test") for name, array in parts.items()})
    recipe = make(**{"device": "cpu", "calibration": 1000, **settings})
    return Context(Artifact(trace(model.eval(), inputs), inputs), data, recipe, torch.device("cpu"))


def residual(act=nn.ReLU):
    torch.manual_seed(0)
    return Net(
        lambda s, x: (lambda y: s.head(s.last(y + s.two(s.one(y)))))(s.stem(x)),
        stem=block(3, 12, act=act),
        one=block(12, 12, act=act),
        two=nn.Sequential(conv(12, 12, bias=False), nn.BatchNorm2d(12)),
        last=act(),
        head=head(12),
    )


def images(c):
    return next(iter(c.data.train.batches(1000))).inputs


def seen_by(c, part, x):
    """What the activation of a block sees: convolution and norm."""
    return c.dense.module.get_submodule(f"{part}.1")(c.dense.module.get_submodule(f"{part}.0")(x))


def error(c, other):
    (y,), (z,) = outputs(c.dense.module, images(c)), outputs(other.module, images(c))
    return float((y - z).square().mean() / y.var(0).mean())


# ---- counting over a data set ----------------------------------------------------------------------------------------------


def counted(c, size=40, estimator="pooled", order=None):
    x = images(c)[0]
    x = x if order is None else x[order]
    return collect(
        c.dense.module,
        lambda: ((part,) for part in x.split(size)),
        [],
        images=len(x),
        device=torch.device("cpu"),
        task="classification",
        estimator=estimator,
    )


def test_entropy_does_not_depend_on_the_size_or_order_of_the_batches():
    c = context(residual())
    shuffled = torch.randperm(96, generator=torch.Generator().manual_seed(1))
    one, other = counted(c, 96), counted(c, 7, order=shuffled)
    assert list(one.states) == ["stem.2", "one.2", "last"]
    for path, states in one.states.items():
        assert states.seen == other.states[path].seen == 96 * 64
        # A batch of another size may be computed in another order: an input of nearly 0 may change its sign.
        assert (states.on - other.states[path].on).abs().max() <= 2
        assert one.bits(path) == pytest.approx(float(states.entropy.mean()))


@pytest.mark.parametrize(("name", "estimate"), [("easier", easier), ("egp", egp)])
def test_published_estimates_come_from_the_same_pass(name, estimate):
    c = context(residual())
    found = counted(c, 40, name)
    parts = []
    for part in images(c)[0].split(40):  # 40, 40 and 16: the short batch counts as much as the others
        with torch.no_grad():
            parts.append(estimate(seen_by(c, "stem", part)).value)
    assert found.bits("stem.2") == pytest.approx(sum(parts) / 3, abs=1e-9)
    assert found.states["stem.2"].seen == 96 * 64


def test_the_recipe_names_the_estimate():
    plain, theirs = context(residual()), context(residual(), entropy="egp", batch_size=40)
    found = refit.statistics(theirs.dense, theirs, (), states=True)
    pooled = refit.statistics(plain.dense, plain, (), states=True)
    assert set(found.estimates) == set(pooled.states) and not pooled.estimates
    assert found.estimates["last"].batches == 3  # of training's size
    assert found.bits("last") != pooled.bits("last")


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (nn.ReLU(), (0, None)),
        (nn.GELU(), (0, None)),
        (nn.ReLU6(), (0, 6)),
        (nn.Hardtanh(-2, 3), (-2, 3)),
        (nn.Hardswish(), (0, 3)),
    ],
)
def test_regimes_are_those_of_the_activation(part, expected):
    assert knees(part) == expected
    low, high = expected
    z = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 4
    model = nn.Sequential(part, nn.Linear(4, 2))
    inputs = (torch.zeros(1, 4),)
    found = collect(
        trace(model.eval(), inputs), lambda: [(z,)], [], images=50, device=torch.device("cpu"), task="classification"
    ).states["0"]
    assert torch.equal(found.on, (z > low).sum(0))
    assert (found.upper is None) == (high is None) and (high is None or torch.equal(found.upper, (z > high).sum(0)))


def test_calls_that_share_their_slopes_are_counted_together():
    torch.manual_seed(0)
    shared = nn.PReLU()
    narrow = nn.Sequential(conv(3, 8), shared, conv(8, 8), shared, head(8))
    wide = nn.Sequential(conv(3, 8), shared, conv(8, 12), shared, head(12))
    inputs = (torch.randn(4, *SHAPE),)
    found = [
        collect(trace(m.eval(), inputs), lambda: [inputs], [], images=4, device=torch.device("cpu"), task="classification")
        for m in (narrow, wide)
    ]
    with torch.no_grad():
        first = narrow[0](inputs[0])
        expected = count(first) + count(narrow[2](shared(first)))
    assert found[0].states["1"].seen == expected.seen and torch.equal(found[0].states["1"].on, expected.on)
    assert found[1].states == {}  # of another width at each place: no channel is the same


def test_entropy_without_data_speaks_of_rectifiers_right_behind_a_norm():
    model = residual()
    with torch.no_grad():
        model.one[1].weight.fill_(1.0), model.one[1].bias.fill_(0.0)
        model.stem[1].weight.fill_(1e-3), model.stem[1].bias.fill_(-1.0)
    found = data_free(trace(model.eval(), (torch.zeros(1, *SHAPE),)))
    assert list(found) == ["stem.2", "one.2"]
    assert found["one.2"] == pytest.approx(1) and found["stem.2"] == pytest.approx(0, abs=1e-9)
    inputs = (torch.zeros(1, *SHAPE),)
    rows = {row.activation: row.entropy for row in depth_rows(Artifact(trace(model, inputs), inputs))}
    assert rows == {**found, "last": None}


def test_analysis_tells_what_each_rectifier_does_and_why_it_stays():
    class Inside(Branches):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

    model = nn.Sequential(block(3, 8, act=nn.ReLU6), Inside(), conv(8, 6), nn.GELU(), nn.MaxPool2d(2), head(6))
    c = context(model, entropy="egp")
    with torch.no_grad():
        c.dense.module.get_submodule("0.1").bias.add_(4.0)
    found = refit.statistics(c.dense, c, (), states=True)
    rows = {row.activation: row for row in analyze(c.dense, c) if row.activation}
    assert list(rows) == ["0.2", "3", "1.act"]
    first = rows["0.2"]
    assert first.layer == "0.0" and first.entropy == found.estimates["0.2"].value != float(found.states["0.2"].entropy.mean())
    assert first.upper is not None and 0 < first.upper < 1 and rows["3"].upper is None
    assert rows["1.act"].stays is not None and "it lies inside 1, which stays whole" in rows["1.act"].stays
    assert rows["1.act"].entropy is None and rows["1.act"].channels == 0
    assert rows["3"].stays is not None and "no layer behind it to merge with" in rows["3"].stays


# ---- lines -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [nn.ReLU, nn.GELU, nn.Hardswish])
def test_lines_are_fitted_to_what_the_rectifier_sees(act):
    c = context(residual(act))
    edit = fit_activations.fitted(c.dense, c, ["one.2"])[0]
    with torch.no_grad():
        z = seen_by(c, "one", act()(seen_by(c, "stem", images(c)[0])))
    x, y = z[:, 5].flatten().double(), act()(z[:, 5]).flatten().double()
    slope, offset = torch.linalg.lstsq(torch.stack([x, torch.ones_like(x)], 1), y[:, None]).solution[:, 0].tolist()
    assert (edit.layer, edit.channels, len(edit.slope)) == ("one.2", 12, 12)
    assert (edit.slope[5], edit.offset[5]) == (pytest.approx(slope, abs=1e-4), pytest.approx(offset, abs=1e-4))
    assert from_json(Plan((edit,)).to_json()).edits == (edit,)


def settled(**settings):
    """A net whose inner activation is always on in even channels and always off in odd ones."""
    c = context(residual(), **settings)
    norm = c.dense.module.get_submodule("one.1")
    with torch.no_grad():
        norm.bias.copy_(100.0 * torch.tensor([1.0, -1.0]).repeat(6))
    return c


def test_a_rectifier_that_never_switches_goes_without_a_trace():
    c = settled()
    edit = fit_activations.fitted(c.dense, c, ["one.2"])[0]
    assert edit.slope == (1.0, 0.0) * 6 and edit.offset == (0.0,) * 12
    straight = apply(Plan((edit,)), c.dense)
    assert torch.equal(straight.module(*images(c)), c.dense.module(*images(c)))
    # What is always off can be removed, exactly.
    small = apply(Plan((Keep("one.0", 12, tuple(range(0, 12, 2))),)), straight)
    assert distance(outputs(small.module, images(c)), outputs(c.dense.module, images(c))) < 1e-5  # the same sums, float32
    # An identity is another function where the activation is off.
    assert error(c, fit_activations.linearized(c.dense, c, ["one.2"], "identity")) > 1


def test_lines_follow_the_channels_that_stay():
    c = context(residual())
    small = apply(Plan((Keep("one.0", 12, (0, 3, 4, 9)),)), c.dense)
    edit = fit_activations.fitted(small, c, ["one.2"])[0]
    assert edit.channels == 4
    both = apply(small.plan.then(edit), c.dense)
    assert torch.equal(both.module(*images(c)), apply(Plan((edit,)), small).module(*images(c)))
    assert error(c, refit.refitted(both, c)) < error(c, both)


@pytest.mark.parametrize("wanted", [["one.2"], ["stem.2", "one.2"]])
def test_a_line_does_less_harm_than_an_identity_and_a_refit_repairs_most_of_it(wanted):
    c = context(residual())
    identity, affine = (error(c, fit_activations.linearized(c.dense, c, wanted, kind)) for kind in ("identity", "affine"))
    alone = error(c, apply(Plan(fit_activations.fitted(c.dense, c, wanted)), c.dense))
    assert affine < 0.7 * alone and alone < 0.5 * identity


def test_a_gentle_line_waits_for_training():
    waiting, without, affine = (
        context(residual(), linearize=kind, epochs=epochs) for kind, epochs in (("gradual", 1), ("gradual", 0), ("affine", 1))
    )
    found = [fit_activations.linearized(c.dense, c, ["one.2"]) for c in (waiting, without, affine)]
    weights = [a.module.get_submodule("two.0").weight for a in found]
    assert torch.equal(weights[0], waiting.dense.module.get_submodule("two.0").weight)
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[0], weights[1])
    assert all(isinstance(a.module.get_submodule("one.2"), ChannelAffine) for a in found)


def test_a_refit_leaves_what_is_in_front_of_the_lines_as_it_was():
    c = context(residual())
    straight = fit_activations.linearized(c.dense, c, ["one.2"])
    torch.testing.assert_close(straight.module.get_submodule("one.0").weight, c.dense.module.get_submodule("one.0").weight)
    assert not torch.equal(straight.module.get_submodule("head.2").weight, c.dense.module.get_submodule("head.2").weight)


def test_no_sites_are_no_change():
    c = context(residual())
    assert fit_activations.linearized(c.dense, c, []) is c.dense and fit_activations.fitted(c.dense, c, []) == ()


# ---- what cannot be done ---------------------------------------------------------------------------------------------------


def test_one_image_is_enough_for_a_convolution():
    c = context(residual(), calibration=1)
    (edit,) = fit_activations.fitted(c.dense, c, ["one.2"])
    assert all(np.isfinite(edit.slope)) and error(c, apply(Plan((edit,)), c.dense)) < np.inf
    assert refit.statistics(c.dense, c, (), states=True).states["one.2"].seen == 64


def test_one_value_per_channel_is_too_few_for_a_line():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.ReLU(), nn.Linear(6, 5))
    one, two = context(model, calibration=1), context(model, calibration=2)
    with pytest.raises(EmptyData, match=r"fitted to 1 values per channel; needed are at least 2. Give more images"):
        fit_activations.fitted(one.dense, one, ["2"])
    assert fit_activations.fitted(one.dense, one, ["2"], "identity") == (Linearize("2", 6),)
    assert len(fit_activations.fitted(two.dense, two, ["2"])) == 1


def test_a_site_that_does_not_exist_is_refused_with_those_that_do():
    c = context(residual())
    with pytest.raises(UnsupportedModel, match=r"no activation two.0; its activations are stem.2, one.2, last\."):
        fit_activations.fitted(c.dense, c, ["two.0"])


def test_a_model_without_rectifiers_says_so():
    c = context(nn.Sequential(conv(3, 8), nn.Sigmoid(), head(8)))
    with pytest.raises(UnsupportedModel, match="no activation 1; it has none left"):
        fit_activations.fitted(c.dense, c, ["1"], "identity")
    gone = fit_activations.linearized(context(residual()).dense, context(residual()), ["stem.2", "one.2", "last"], "identity")
    with pytest.raises(UnsupportedModel, match="it has none left"):
        fit_activations.fitted(gone, c, ["last"])


def test_a_rectifier_that_cannot_become_a_line_is_refused_with_the_reason():
    class Inside(Branches):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU()

    c = context(nn.Sequential(conv(3, 8), Inside(), nn.ReLU(), head(8)))
    with pytest.raises(UnsupportedModel, match=r"1.act cannot be linearized: it lies inside 1, which stays whole because"):
        fit_activations.fitted(c.dense, c, ["2", "1.act"])
    assert len(fit_activations.fitted(c.dense, c, ["2"])) == 1


# ---- lines and moved padding -----------------------------------------------------------------------------------------------


def chain(stride=1):
    torch.manual_seed(0)
    parts = (nn.Conv2d(3, 8, 3, stride, 1), nn.ReLU(), conv(8, 8), nn.Identity(), conv(8, 8, 5), nn.ReLU())
    return nn.Sequential(*parts, head(8))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_refit_knows_where_padding_has_moved(stride):
    c = context(chain(stride))
    straight = fit_activations.fitted(c.dense, c, ["1"])
    moved = apply(Plan((*straight, Relocate(("0", "2", "4")))), c.dense)
    assert moved.module.get_submodule("0").padding == (1 + 3 * stride,) * 2
    refitted = refit.refitted(moved, c)
    before_moving = apply(Plan((Relocate(("0", "2", "4")),)), fit_activations.linearized(c.dense, c, ["1"]))
    assert error(c, refitted) < 0.3 * error(c, moved) and error(c, refitted) < 0.3 * error(c, before_moving)


def test_a_refit_repairs_the_border_where_padding_alone_has_moved():
    c = context(chain())
    moved = apply(Plan((Relocate(("2", "4")),)), c.dense)
    refitted = refit.refitted(moved, c)
    assert error(c, refitted) < 0.3 * error(c, moved)
    before, after = (m.module.get_submodule("2").weight for m in (c.dense, refitted))
    torch.testing.assert_close(after, before)  # what it reads has not changed


@pytest.mark.parametrize(
    ("sizes", "paddings", "stride", "expected"),
    [((8, 8), (1, 1), 1, 0), ((8, 12), (1, 1), 1, 2), ((8, 12), (2, 0), 1, 0), ((8, 8), (1, 3), 2, 1), ((8, 9), (1, 1), 1, None)],
)
def test_an_output_is_found_again_behind_moved_padding(sizes, paddings, stride, expected):
    one, other = (
        layers(trace(nn.Sequential(nn.Conv2d(2, 2, 3, stride, p)).eval(), (torch.zeros(1, 2, 9, 9),)))["0"] for p in paddings
    )
    x, other_x = (torch.zeros(1, 2, n, n) for n in sizes)
    at = Positions(torch.tensor([0, 0]), (torch.tensor([0, 3]), torch.tensor([1, 2])))
    found = one.counterpart(at, x, other, other_x)
    assert (found is None) == (expected is None)
    if found is not None:
        assert [p.tolist() for p in found.place] == [[0 + expected, 3 + expected], [1 + expected, 2 + expected]]


def test_a_value_without_channels_has_none():
    net = Net(lambda s, x: s.out(s.a(x)), a=conv(3, 8), out=conv(8, 2))
    module = trace(net, (torch.zeros(1, 3, 4, 4),))
    at = {n.op if n.op == "output" else n.name: channels_at(n, 1) for n in module.graph.nodes}
    assert at["a"] == 8 and at["out"] == at["output"] == 2
    node = next(n for n in module.graph.nodes if n.name == "a")
    for shape in (None, (1,), ()):
        node.meta["shape"] = shape
        assert channels_at(node, 1) == 0
