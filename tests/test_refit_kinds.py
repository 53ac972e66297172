"""Every kind of layer that reads channels is refitted: removing redundant channels leaves what the model computes.

The last half of the stem's channels are combinations of the first half, so that whoever reads them can do without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.artifact import Artifact, apply
from compress.edits import Keep, Plan
from compress.entropy.moments import Window
from compress.entropy.obs import eliminate
from compress.graph.channels.solve import solve
from compress.graph.merge.batch_norm import fold, pairs, unfold
from compress.graph.trace.trace import trace
from compress.refit import refit as calibration
from compress.refit.inputs import Images
from compress.refit.tape import Tape, needed_bytes, order, run
from compress.refit.walk import Refitted, refit
from compress.selection.channels import Losses
from compress.statistics.collect import collect
from compress.statistics.layers import as_matrix, from_matrix, layers

WIDTH, LEFT = 8, 4
CPU = torch.device("cpu")


class Net(nn.Module):
    """`call` on named parts; the stem's last channels repeat its first ones in other proportions."""

    def __init__(self, call: Callable[[Any, Tensor], Tensor], **parts: nn.Module):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.call = call
        mixing = torch.rand(WIDTH - LEFT, LEFT) + 0.1
        for name in ("stem", *(["cell"] if hasattr(self, "cell") else [])):
            part: Any = getattr(self, name)
            with torch.no_grad():
                part.weight[LEFT:] = torch.einsum("ij,j...->i...", mixing, part.weight[:LEFT])
                part.bias[LEFT:] = mixing @ part.bias[:LEFT]

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def chain(stem: nn.Module, reader: nn.Module, *rest: nn.Module) -> Net:
    return Net(lambda s, x: s.rest(s.reader(s.stem(x))), stem=stem, reader=reader, rest=nn.Sequential(nn.Tanh(), *rest))


def conv1(into: int, out: int) -> nn.Module:
    return nn.Conv1d(into, out, 3, padding=1)


def conv2(into: int, out: int) -> nn.Module:
    return nn.Conv2d(into, out, 3, padding=1)


def conv3(into: int, out: int) -> nn.Module:
    return nn.Conv3d(into, out, 3, padding=1)


LINE, PLANE, SPACE = (3, 12), (3, 7, 6), (2, 5, 4, 6)
NETS: dict[str, tuple[tuple[int, ...], Callable[[], Net]]] = {
    "Linear": ((6,), lambda: chain(nn.Linear(6, WIDTH), nn.Linear(WIDTH, 5))),
    "Conv1d": (LINE, lambda: chain(conv1(3, WIDTH), nn.Conv1d(WIDTH, 5, 5, 2, 2, 2), conv1(5, 2))),
    "Conv2d": (PLANE, lambda: chain(conv2(3, WIDTH), nn.Conv2d(WIDTH, 5, (3, 2), (1, 2), (0, 1)), conv2(5, 2))),
    "Conv2d that reflects": (PLANE, lambda: chain(conv2(3, WIDTH), nn.Conv2d(WIDTH, 5, 3, padding=2, padding_mode="reflect"))),
    "Conv3d": (SPACE, lambda: chain(conv3(2, WIDTH), nn.Conv3d(WIDTH, 5, (3, 1, 2), (1, 2, 1), 1), conv3(5, 2))),
    "ConvTranspose1d": (LINE, lambda: chain(conv1(3, WIDTH), nn.ConvTranspose1d(WIDTH, 5, 4, 2, 1), conv1(5, 2))),
    "ConvTranspose2d": (PLANE, lambda: chain(conv2(3, WIDTH), nn.ConvTranspose2d(WIDTH, 5, 3, 2, 1, 1), conv2(5, 2))),
    "ConvTranspose2d without gaps": (
        PLANE,
        lambda: chain(conv2(3, WIDTH), nn.ConvTranspose2d(WIDTH, 5, (2, 3), (2, 1), (0, 1), 0, dilation=(1, 2)), conv2(5, 2)),
    ),
    "ConvTranspose3d": (SPACE, lambda: chain(conv3(2, WIDTH), nn.ConvTranspose3d(WIDTH, 5, 2, 2, 0), conv3(5, 2))),
    "ConvTranspose2d with a norm": (
        PLANE,
        lambda: chain(conv2(3, WIDTH), nn.ConvTranspose2d(WIDTH, 5, 3, 2), nn.BatchNorm2d(5), conv2(5, 2)),
    ),
    "a layer called on two values": (
        PLANE,
        lambda: Net(
            lambda s, x: s.out(torch.tanh(s.reader(0 * s.stem(x))) + s.reader(s.stem(x))),  # the first call tells nothing
            stem=conv2(3, WIDTH),
            reader=conv2(WIDTH, 5),
            out=conv2(5, 2),
        ),
    ),
    "a layer called on its own value": (
        PLANE,
        lambda: Net(
            lambda s, x: s.out(s.cell(s.cell(s.stem(x)))),
            stem=conv2(3, WIDTH),
            cell=conv2(WIDTH, WIDTH),
            out=conv2(WIDTH, 2),
        ),
    ),
    "two layers called on three values each": (
        PLANE,
        lambda: Net(
            lambda s, x: s.out(torch.cat([s.second(torch.tanh(s.first(scale * s.stem(x)))) for scale in (1, 3, 2)], 1)),
            stem=conv2(3, WIDTH),
            first=conv2(WIDTH, 6),
            second=conv2(6, 5),
            out=conv2(15, 2),
        ),
    ),
}


@dataclass(frozen=True)
class Case:
    dense: Artifact
    plan: Plan
    images: Tensor
    before: float
    after: float
    fitted: Refitted
    result: GraphModule


def settled(model: nn.Module, images: Tensor) -> nn.Module:
    """Norms get statistics of their inputs."""
    with torch.no_grad():
        for _ in range(30):
            model.train()(images)
    return model.eval()


MIXED: dict[str, tuple[tuple[int, ...], Callable[[], Net]]] = {
    "positions mixed beside channels": (
        (5, 6),
        lambda: Net(
            lambda s, x: s.reader((x := s.stem(x)) + s.across(x.mT).mT),
            stem=nn.Linear(6, WIDTH),
            across=nn.Linear(5, 5, bias=False),
            reader=nn.Linear(WIDTH, 3),
        ),
    )
}
"""Networks with a layer whose rows are the channels."""


@functools.cache
def case(name: str, sequential: bool = True) -> Case:
    torch.manual_seed(1)
    shape, build = (NETS | MIXED)[name]
    images = torch.randn(120, *shape)
    model = settled(build(), images)
    dense = Artifact(trace(model, (images[:1],)), (images[:1],))
    group = next(g for g in solve(dense.module, dense.inputs).groups if "stem" in g.producers)
    assert group.channels == WIDTH and group.frozen is None
    plan = Plan((Keep(group.name, WIDTH, tuple(range(LEFT))),))
    smaller = apply(plan, dense)
    small = fold(smaller.module).requires_grad_(False)
    batches = [(part,) for part in images.split(60)]
    folded = fold(dense.module).requires_grad_(False)
    before = error(dense.module, smaller.module, images)
    done = refit(folded, small, calibration.kept(dense, plan), batches, device=CPU, sequential=sequential)
    result = calibration.written_back(smaller, small, batches)
    return Case(dense, plan, images, before, error(dense.module, result, images), done, result)


def test_a_mean_over_channels_is_walked_with_the_factor_that_it_has_in_the_smaller_model():
    torch.manual_seed(0)
    x = torch.randn(60, 3, 7, 6)
    net = Net(
        lambda s, x: s.reader((h := torch.relu(s.stem(x))) + h * (n := h.norm(dim=(2, 3), keepdim=True)) / (n.mean(1, True) + 1)),
        stem=conv2(3, WIDTH),
        reader=conv2(WIDTH, 5),
    )
    dense = Artifact(trace(net.eval(), (x[:1],)), (x[:1],))
    plan = Plan((Keep("stem", WIDTH, tuple(range(LEFT))),))
    smaller = apply(plan, dense)
    folded, small = (fold(one.module).requires_grad_(False) for one in (dense, smaller))
    names = [node.name for node in dense.module.graph.nodes]
    calibration.align(folded, small)
    assert {n.name for n in folded.graph.nodes} == {n.name for n in small.graph.nodes} != set(names)
    assert torch.equal(folded(x), dense.module(x)) and names == [node.name for node in dense.module.graph.nodes]
    refit(folded, small, calibration.kept(dense, plan), [(part,) for part in x.split(30)], device=CPU)
    assert error(dense.module, small, x) < 0.5 * error(dense.module, smaller.module, x)


def error(dense: nn.Module, other: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        y = dense(images)
        return float((y - other(images)).square().mean() / y.var())


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize("name", [*NETS, *MIXED])
def test_redundant_channels_leave_nothing_behind(name: str, sequential: bool):
    found = case(name, sequential)
    assert found.before > 0.05
    # The ridge of 1e-3 moves weights by about as much: squared, 1e-6; the mixing makes the kept channels less than white.
    assert found.after < 1e-4


@pytest.mark.parametrize("name", NETS)
def test_the_loss_says_that_redundant_channels_are_free(name: str):
    found = case(name)
    group = next(g for g in solve(found.dense.module, found.dense.inputs).removable if "stem" in g.producers)
    paths = [path for path in layers(found.dense.module) if path in group.consumers]
    assert paths
    seen = collect(found.dense.module, lambda: [(found.images,)], paths, images=len(found.images), device=CPU, task="regression")
    losses = eliminate(Losses(found.dense.module, seen).of(group)).losses
    assert losses[LEFT] < 0.02 * losses[0] and losses[LEFT - 1] > 1.5 * losses[LEFT]


@pytest.mark.parametrize("name", NETS)
def test_the_rows_times_the_weights_are_what_the_layer_computes(name: str):
    found = case(name)
    module = fold(found.dense.module)
    tape = Tape(module, order(module), Images([(found.images[:3],)]))
    values = tape.ahead(tape.reach(0, 0), [node.name for node in module.graph.nodes if node.op != "output"])
    for one in layers(module).values():
        layer: Any = module.get_submodule(one.path)
        assert torch.equal(from_matrix(layer, as_matrix(layer)), layer.weight)
        for call in one.nodes:
            node = tape.nodes[call]
            y, x = values[call], values[node.all_input_nodes[0].name]
            at = one.places(y, 50, torch.Generator().manual_seed(0))
            rows = one.rows(x, at).unflatten(1, (one.groups, -1))
            made = torch.einsum("rgq,gmq->rgm", rows, as_matrix(layer).unflatten(0, (one.groups, -1))).flatten(1)
            torch.testing.assert_close(made + layer.bias, one.targets(y, at), rtol=1e-4, atol=1e-5)  # fp32 sums


GROUPED = [
    nn.Conv1d(WIDTH, 8, 3, groups=4),
    nn.ConvTranspose1d(WIDTH, 4, 4, 2, groups=2),
    nn.ConvTranspose1d(WIDTH, 8, 2, groups=WIDTH),
]


@pytest.mark.parametrize("reader", GROUPED, ids=str)
@pytest.mark.parametrize("sequential", [True, False])
def test_groups_that_are_left_are_refitted(reader: nn.Module, sequential: bool):
    torch.manual_seed(0)
    model = nn.Sequential(conv1(3, 6), conv1(6, WIDTH), reader, nn.Tanh(), nn.Conv1d(reader.weight.shape[0], 2, 1))
    model[-1] = nn.Conv1d(int(reader.out_channels), 2, 1)
    with torch.no_grad():  # channels 3 to 5 of the first layer repeat the others: what comes later need not change
        model[0].weight[3:] = 2 * model[0].weight[:3]
        model[0].bias[3:] = 2 * model[0].bias[:3]
    images = torch.randn(300, *LINE)
    dense = Artifact(trace(model.eval(), (images[:1],)), (images[:1],))
    groups = {g.name: g for g in solve(dense.module, dense.inputs).removable}
    number = groups["1"].channels
    plan = Plan((Keep("0", 6, (0, 1, 2)), Keep("1", number, tuple(range(number // 2, number)))))
    smaller = apply(plan, dense)
    small, batches = fold(smaller.module).requires_grad_(False), [(images,)]
    kept = calibration.kept(dense, plan)
    refit(fold(dense.module), small, kept, batches, device=CPU, only=["1"])
    # Whatever the reader now computes wrongly for the groups that are left, it is told by a refit of itself.
    part: Any = small.get_submodule("2")
    with torch.no_grad():
        before = part.weight.clone()
        part.weight.mul_(1.5)
    done = refit(fold(dense.module), small, kept, batches, device=CPU, sequential=sequential, only=["2"])
    assert done.errors["2"] < 1e-3
    torch.testing.assert_close(part.weight, before, rtol=0, atol=0.05)  # ridge


def test_a_layer_called_on_its_own_value_is_fitted_to_both_calls():
    found = case("a layer called on its own value")
    assert list(found.fitted.errors) == ["cell", "out"]


def test_what_a_layer_reads_later_comes_before_its_first_call():
    model = Net(lambda s, x: s.reader(s.stem(x)) + s.reader(s.other(x)), stem=conv2(3, 8), other=conv2(3, 8), reader=conv2(8, 5))
    module = trace(model.eval(), (torch.randn(1, *PLANE),))
    names = order(module)
    assert names.index("other") < names.index("reader")


def test_the_first_call_of_a_layer_comes_first():
    """Later ones may be ready earlier: the first waits for what all of them read."""
    _, build = NETS["two layers called on three values each"]
    module = trace(build().eval(), (torch.randn(1, *PLANE),))
    place = {name: i for i, name in enumerate(order(module))}
    for one in layers(module).values():
        places = [place[call] for call in one.nodes]
        assert places == sorted(places)


def test_a_weight_that_two_layers_hold_is_not_refitted():
    model = nn.Sequential(conv2(3, 4), conv2(4, 4), nn.ReLU(), conv2(4, 4), nn.BatchNorm2d(4))
    model[3].weight = model[1].weight
    module = trace(model.eval(), (torch.randn(1, *PLANE),))
    assert list(layers(module)) == ["0"]
    assert pairs(module) == ()


def test_a_norm_on_another_axis_than_the_layer_is_not_folded():
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    assert pairs(trace(model.eval(), (torch.randn(1, 6, 6),))) == ()
    assert len(pairs(trace(model.eval(), (torch.randn(1, 6),)))) == 1


@pytest.mark.parametrize("groups", [1, 2])
def test_norms_behind_transposed_convolutions_fold_and_unfold(groups: int):
    torch.manual_seed(0)
    images = torch.randn(40, 4, 6, 6)
    model = settled(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, groups=groups), nn.BatchNorm2d(6), nn.ReLU()), images)
    module = trace(model, (images[:1],))
    folded = fold(module)
    assert [p.norm for p in pairs(module)] == ["1"]
    taken = unfold(module, folded, calibration.output_moments(folded, ["0"], [(images,)]))
    with torch.no_grad():
        for other in (folded, taken):
            torch.testing.assert_close(other(images), module(images), rtol=1e-4, atol=1e-5)  # a scale per channel, fp32


def test_a_bias_that_two_layers_share_is_shared_after_unfolding():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[4].bias = model[2].bias
    x = torch.randn(6, 4)
    module = trace(model.eval(), (x,))
    folded = fold(module)
    with torch.no_grad():
        folded.get_submodule("2").bias += 1
    taken = unfold(module, folded, calibration.output_moments(folded, ["0"], [(x,)]))
    one, other = taken.get_submodule("2").bias, taken.get_submodule("4").bias
    assert one is other and torch.equal(one, model[2].bias + 1)


def test_a_linear_layer_is_a_window_without_axes():
    assert Window().taps == 1


def test_a_tape_holds_the_bytes_of_one_sample():
    x = torch.zeros(4, 3, 8, 8)

    def halves(s, x):
        a, b = s.stem(x).chunk(2, 1)
        return s.out(a * b)

    split = Net(halves, stem=conv2(3, WIDTH), out=conv2(WIDTH // 2, 2))
    # Behind chunk: both halves (8 planes), and the whole that they are cut from; 4 bytes a number, whatever the batch.
    assert needed_bytes(trace(split, (x,))) == 4 * (8 + 8) * 64
    plain = nn.Sequential(conv2(3, 5), nn.ReLU())
    assert needed_bytes(trace(plain, (x,))) == 4 * (5 + 5) * 64
    sized = Net(lambda s, x: (lambda y: y.view(y.size(0), -1))(s.stem(x)), stem=conv2(3, WIDTH))
    assert needed_bytes(trace(sized, (x,))) == 4 * (8 + 8) * 64, "a number takes nothing"


def test_the_output_of_a_graph_is_evaluated_like_any_other_node():
    x = torch.randn(2, 3, 7, 6)
    module = trace(nn.Sequential(conv2(3, 4), nn.ReLU()), (x,))
    names = [node.name for node in module.graph.nodes]
    found = run(module, list(module.graph.nodes), {names[0]: x})
    assert torch.equal(found["output"], module(x))
