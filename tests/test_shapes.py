"""Shapes are found without running the model, and are those of the run; a traced copy shares weights and nothing else."""

import copy

import pytest
import torch
from models import MODELS, Net, conv, head, random_model
from torch import nn
from torch.fx import Interpreter

from compress.errors import BadInput
from compress.graph.trace.shapes import note_shapes, shape_of
from compress.graph.trace.sharing import sharing
from compress.graph.trace.trace import trace


class Observed(Interpreter):
    """Runs a graph and keeps the shape of every value."""

    def __init__(self, module):
        super().__init__(module)
        self.shapes = {}

    def run_node(self, n):
        value = super().run_node(n)
        self.shapes[n.name] = shape_of(value)
        return value


@pytest.mark.parametrize("name", MODELS)
def test_the_shapes_noted_are_those_of_a_run(name):
    module = trace(*random_model(name))
    seen = Observed(module)
    with torch.no_grad():
        seen.run(*random_model(name)[1])
    assert {n.name: n.meta["shape"] for n in module.graph.nodes} == seen.shapes


KERNELS = [
    nn.Conv2d(4, 6, 3, 2, 1, 2),
    nn.Conv2d(4, 6, (1, 5), (3, 1), (0, 2)),
    nn.Conv2d(4, 6, 3, padding="same"),
    nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
    nn.Conv2d(4, 8, 3, groups=4),
    nn.AdaptiveAvgPool2d(3),
    nn.AdaptiveAvgPool2d((None, 2)),
    nn.MaxPool2d(3, 2, ceil_mode=True),
    nn.BatchNorm2d(4).eval(),
    nn.GroupNorm(2, 4),
    nn.LayerNorm(11),
    nn.Linear(11, 7),
    nn.ConvTranspose2d(4, 5, 3, 2),
    nn.Upsample(scale_factor=2),
]


@pytest.mark.parametrize("layer", KERNELS, ids=str)
def test_the_arithmetic_of_each_layer_is_that_of_torch(layer):
    x = torch.randn(2, 4, 9, 11)
    module = trace(nn.Sequential(layer), (x,))
    with torch.no_grad():
        assert next(n for n in module.graph.nodes if n.op == "output").meta["shape"] == tuple(layer(x).shape)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_attention_gives_what_the_queries_are(first, weights):
    class Attends(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=first)

        def forward(self, q, k, v):
            return self.layer(q, k, v, need_weights=weights)[0]

    samples, others = (2, 3) if first else (3, 2)
    q, k, v = (
        torch.randn(2, 5, 8) if first else torch.randn(5, 2, 8),
        torch.randn(samples, others, 6),
        torch.randn(samples, others, 4),
    )
    module = trace(Attends(), (q, k, v))
    assert module.graph.find_nodes(op="output")[0].meta["shape"] == tuple(q.shape)
    for wrong in ((q, v, k), (q[:1, :1], k, v)):
        with pytest.raises(BadInput):
            trace(Attends(), wrong)


def test_operands_of_different_sizes_are_broadcast():
    model = Net(lambda s, x: torch.cat([x * x.mean((2, 3), keepdim=True), x.mean(1, keepdim=True) + x, 2 - x], -3))
    module = trace(model, (torch.randn(1, 3, 8, 8),))
    shapes = [n.meta["shape"] for n in module.graph.nodes]
    assert shapes[-1] == (1, 9, 8, 8)
    grows = trace(Net(lambda s, x: x[:, :1] * x[:, :, :1]), (torch.randn(1, 3, 8, 8),))
    assert [n.meta["shape"] for n in grows.graph.nodes][-1] == (1, 3, 8, 8)


def test_no_convolution_runs(monkeypatch):
    model, inputs = random_model("residual")

    def run(*_):
        raise AssertionError("a convolution was run")

    monkeypatch.setattr(nn.Conv2d, "forward", run)
    assert trace(model, inputs).graph.find_nodes(op="output")[0].meta["shape"] == (1, 5)


def test_what_needs_values_is_run():
    model = Net(lambda s, x: s.head(s.stem(x)[x.mean((1, 2, 3)) < 9]), stem=conv(3, 4), head=head(4))
    assert trace(model, (torch.randn(2, 3, 8, 8),)).graph.find_nodes(op="output")[0].meta["shape"] == (2, 5)


def test_a_hook_that_changes_a_shape_is_seen():
    model = nn.Sequential(conv(3, 4))
    model[0].register_forward_hook(lambda part, args, y: y[:, :2])
    module = trace(model, (torch.randn(1, 3, 8, 8),))
    assert [n.meta["shape"] for n in module.graph.nodes if n.target == "0"] == [(1, 2, 8, 8)]


def test_a_layer_that_refuses_its_input_is_heard():
    module = trace(nn.Sequential(conv(3, 4), nn.BatchNorm2d(4)), (torch.randn(1, 3, 8, 8),))
    module.get_submodule("1").num_features = 4
    module.get_submodule("0").in_channels = 5
    module.get_submodule("0").weight = nn.Parameter(torch.randn(4, 5, 3, 3))
    with pytest.raises(RuntimeError, match="to have 5 channels"):
        note_shapes(module, module.graph, (torch.randn(1, 3, 8, 8),))


@pytest.mark.parametrize(("norm", "axes"), [(nn.BatchNorm2d, 3), (nn.BatchNorm2d, 5), (nn.BatchNorm3d, 4), (nn.BatchNorm3d, 6)])
def test_a_norm_for_other_axes_is_heard(norm, axes):
    x = torch.randn(2, 4, 5, 5, 5, 5)[(..., *[0] * (6 - axes))]
    module = trace(nn.Sequential(nn.ReLU(), norm(4)).eval(), (torch.randn(2, 4, *[5] * (3 if norm is nn.BatchNorm3d else 2)),))
    with pytest.raises(ValueError, match=f"got {axes}D input"):
        note_shapes(module, module.graph, (x,))


# ---- the copy --------------------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Refers to its parts in more than one way."""

    def __init__(self):
        super().__init__()
        self.layer, self.settings = nn.Linear(2, 2), {"deep": [1, 2]}
        self.again = self.layer
        self.bypass = [self.layer]
        self.recurrent = nn.LSTM(2, 2)
        self.norm = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("halved", torch.ones(2, dtype=torch.float16))
        self.register_parameter("tied", self.layer.weight)


def test_a_copy_has_its_own_modules_and_the_model_s_tensors():
    model = Odd().train()
    same = sharing(model)
    ours = {id(m) for m in model.modules()}
    assert not any(id(m) in ours for m in same.modules())
    assert [n for n, _ in same.named_modules(remove_duplicate=False)] == [
        n for n, _ in model.named_modules(remove_duplicate=False)
    ]
    for (name, a), b in zip(model.state_dict().items(), same.state_dict().values(), strict=True):
        assert (a.data_ptr() == b.data_ptr()) == (a.dtype == b.dtype), name
        assert b.dtype == (torch.float32 if a.is_floating_point() else a.dtype), name
    assert same.again is same.layer and same.bypass[0] is same.layer and same.tied is same.layer.weight
    assert same.settings == model.settings and same.settings["deep"] is not model.settings["deep"]
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in same.parameters())
    same.eval()
    same.register_forward_hook(print)
    assert model.layer.training and not model._forward_hooks
    x = torch.randn(3, 2)
    assert torch.equal(same.norm(x), model.norm(x)) and torch.equal(same.recurrent(x)[0], model.recurrent(x)[0])


def test_a_class_that_says_how_it_is_copied_is_copied_that_way():
    class Own(nn.Linear):
        def __deepcopy__(self, memo):
            new = Own(self.in_features, self.out_features)
            new.copied = True
            return new

    assert sharing(nn.Sequential(Own(2, 2)))[0].copied


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # of torch itself, in some versions
def test_what_torch_compile_left_is_not_copied():
    model = nn.Linear(2, 2)
    model.compile()
    assert "_compiled_call_impl" in vars(model) and "_compiled_call_impl" not in vars(sharing(model))


def test_a_copy_of_a_copy_equals_a_deep_copy():
    model = random_model("attention_fused")[0]
    a, b = sharing(sharing(model)), copy.deepcopy(model)
    for one, other in zip(a.modules(), b.modules(), strict=True):
        assert type(one) is type(other) and list(vars(one)) == list(vars(other))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_what_copies_itself_finds_the_modules_that_it_holds_though_others_hold_them_too():
    act = nn.SiLU()
    holder = nn.Sequential(nn.Linear(3, 3), act)
    vars(holder)["forward"] = torch.fx.GraphModule(
        nn.ModuleDict(dict(holder._modules)), torch.fx.symbolic_trace(holder).graph
    ).forward
    model = nn.Sequential(nn.Linear(3, 3), act, holder).eval()
    copied, x = sharing(model), torch.randn(2, 3)
    assert copied[1] is copied[2][1] is not act
    assert torch.equal(copied(x), model(x))
