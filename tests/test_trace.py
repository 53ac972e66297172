"""A traced model computes what the user's class computes, keeps its names, and says what it could not follow."""

import copy
import inspect
import pickle

import pytest
import torch
import torch.nn.functional as F
from models import CHECKS, CHOICES, MODELS, Net, block, conv, head, random_model, remembers
from oracles import flat, outputs
from torch import nn
from torch.fx import Proxy

from compress.errors import BadInput, UnsupportedModel
from compress.graph.channels.solve import solve
from compress.graph.names import submodules
from compress.graph.trace.trace import trace


def image(size=1):
    return torch.randn(size, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def modules_of(module):
    return [type(module.get_submodule(n.target)).__name__ for n in module.graph.nodes if n.op == "call_module"]


def made_layers(module, model):
    """Paths of layers that the model's own class does not have: of functions, and of attention that is written out."""
    there = {path for path, m in model.named_modules() if type(m).__module__.startswith("torch.nn.")}
    return {n.target for n in module.graph.nodes if n.op == "call_module"} - there | module.meta["plain"].keys()


@pytest.mark.parametrize("name", MODELS)
def test_tracing_changes_no_bit_no_name_and_not_the_model(name):
    model, inputs = random_model(name)
    model.train()
    before = copy.deepcopy(model.state_dict())
    module = trace(model, inputs)
    assert model.training and not module.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    # Parameters that stand in the forward itself go to the layers that are made for them.
    layers = {f"{path}.{key}" for path in made_layers(module, model) for key in module.get_submodule(path).state_dict()}
    assert {k for k in module.state_dict() if not k.endswith(".rows")} - layers <= set(before)
    doubled = [torch.cat([x, x.flip(-1)]) for x in inputs]
    assert all(torch.equal(a, b) for a, b in zip(outputs(module, doubled), outputs(model.eval(), doubled), strict=True))
    assert all(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize("name", ["plain", "attention_fused", "functional_activations", "opaque_part", "decoder_by_unflatten"])
def test_a_traced_model_is_traced_again_without_loss(name):
    model, inputs = random_model(name)
    once = trace(model, inputs)
    again = trace(once, inputs)
    assert [n.op for n in again.graph.nodes] == [n.op for n in once.graph.nodes]
    assert list(again.state_dict()) == list(once.state_dict())


def test_functional_activations_and_dropouts_become_modules():
    model, inputs = random_model("functional_activations")
    module = trace(model, inputs)
    kinds = "ReLU ReLU6 Hardswish LeakyReLU ELU SELU CELU Mish SiLU GELU Softplus Hardsigmoid Hardtanh Tanh Sigmoid LogSigmoid"
    assert {*kinds.split(), *["Softsign", "Tanhshrink", "Hardshrink", "Softshrink", "Threshold"]} <= set(modules_of(module))
    assert module.get_submodule("leaky_relu").negative_slope == 0.2
    assert module.get_submodule("gelu").approximate == "tanh"
    model, inputs = random_model("dropouts")
    assert modules_of(trace(model, inputs)).count("Dropout2d") == 2


def test_dropout_written_as_a_function_wakes_up_in_training():
    model, inputs = random_model("dropouts")
    module = trace(model, inputs).train()
    torch.manual_seed(0)
    first = module(image(4))
    assert not torch.equal(first, module(image(4)))
    module.eval()
    assert torch.equal(module(image(4)), module(image(4)))


def test_stochastic_depth_wakes_up_in_training():
    model, inputs = random_model("stochastic_depth")
    module = trace(model, inputs)
    module.get_submodule("drop").train()
    torch.manual_seed(0)
    assert not torch.equal(module(image(16)), module(image(16)))


def test_dropout_that_is_always_on_stays_as_it_is():
    module = trace(Net(lambda s, x: F.dropout(s.a(x), 0.5, training=True), a=conv(3, 4)), (image(),))
    assert not any(isinstance(m, nn.Dropout) for m in module.modules())


def test_every_node_knows_its_shape_and_line():
    model, inputs = random_model("residual")
    module = trace(model, inputs)
    shapes = {n.name: n.meta["shape"] for n in module.graph.nodes}
    assert shapes["stem_0"] == (1, 8, 8, 8) and shapes["head_2"] == (1, 5)
    assert [n.meta["source"].split(":")[0] for n in module.graph.nodes if n.name == "add"] == ["models.py"]
    assert not any("test_" in n.meta.get("source", "") for n in module.graph.nodes)


def test_control_flow_that_depends_on_data_is_refused_by_line():
    class Root(nn.Module):
        def forward(self, x):
            if x.mean() > 0:
                return x
            return -x

    with pytest.raises(UnsupportedModel, match=r"own forward cannot be traced \(test_trace\.py:\d+: a branch is taken by"):
        trace(Root(), (image(),))


def test_control_flow_that_depends_on_the_batch_is_refused():
    class Root(nn.Module):
        def forward(self, x):
            return x if x.shape[0] > 1 else -x

    with pytest.raises(UnsupportedModel, match=r"own forward cannot be traced"):
        trace(Root(), (image(),))


def test_control_flow_that_depends_on_sizes_is_decided():
    model, inputs = random_model("branches_by_size")
    module = trace(model, inputs)
    assert module.meta["opaque"] == {}
    names = {getattr(n.target, "__name__", n.target) for n in module.graph.nodes}
    assert {"pad", "avg_pool2d"} <= names
    # What leads to a condition is run, not traced; behind it, layers are layers again.
    assert "conv2d" not in names and modules_of(module).count("Conv2d") == modules_of(module).count("BatchNorm2d") == 3
    assert not {"eq", "mod", "and_", "shape", "ndim"} & names
    assert not any(n.target is getattr for n in module.graph.nodes)


def test_a_part_that_cannot_be_traced_stays_whole_and_says_why():
    model, inputs = random_model("opaque_part")
    module = trace(model, inputs)
    assert list(module.meta["opaque"]) == ["1"]
    assert module.meta["opaque"]["1"].startswith("cannot be traced (models.py:")
    assert type(module.get_submodule("1")).__name__ == "Branches"


@pytest.mark.parametrize(
    ("inputs", "message"), [((torch.zeros(1, 4, 8, 8),), "4x8x8"), ((image(), image()), r"2 input\(s\)"), ((), r"0 input\(s\)")]
)
def test_inputs_that_do_not_fit_are_refused(inputs, message):
    with pytest.raises(BadInput, match=message):
        trace(nn.Sequential(block(3, 4), head(4)), inputs)


def test_half_precision_becomes_single():
    module = trace(nn.Sequential(block(3, 4), head(4)).half().eval().float().half(), (image(),))
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_a_subclass_that_changes_nothing_becomes_its_base():
    model, inputs = random_model("subclassed_layers")
    module = trace(model, inputs)
    assert type(module.get_submodule("0")) is nn.Conv2d
    assert type(model[0]).__name__ == "OwnConv"
    assert not any(n.op == "call_function" and n.target is F.conv2d for n in module.graph.nodes)


def test_assertions_about_the_input_do_not_stop_the_trace():
    model, inputs = random_model("default_arguments")
    module = trace(model, inputs)
    assert module.meta["opaque"] == {}
    assert [n.op for n in module.graph.nodes].count("placeholder") == 1
    assert not any(n.target is torch._assert for n in module.graph.nodes)


def ruled(rule, front_end="by symbols"):
    def call(s, x):
        x = rule(s.first(x))
        if front_end == "by running" and isinstance(x, Proxy):
            raise TypeError("a tensor is needed")
        return s.last(x)

    return Net(call, first=conv(3, 6), last=conv(6, 4)).eval()


@pytest.mark.parametrize("front_end", ["by symbols", "by running"])
@pytest.mark.parametrize("rule", CHECKS)
def test_a_check_of_values_is_taken_to_pass_and_freezes_nothing(rule, front_end):
    model = ruled(rule, front_end)
    module = trace(model, (image(),))
    assert module.meta["opaque"] == {}
    assert torch.equal(module(image(2)), model(image(2)))
    assert "first" in [group.name for group in solve(module, (image(),)).removable]


@pytest.mark.parametrize("front_end", ["by symbols", "by running"])
@pytest.mark.parametrize("rule", CHOICES)
def test_a_choice_by_values_is_no_check(rule, front_end):
    # What the values are is not known here: an assertion that fails while tracing would accuse a model that is right.
    with pytest.raises(UnsupportedModel, match=r"own forward cannot be traced \(models.py:\d+: a branch is taken by the value"):
        trace(ruled(rule, front_end), (image(),))


def test_a_value_that_is_checked_and_then_used_is_no_check():
    with pytest.raises(UnsupportedModel, match=r"own forward cannot be traced \(models.py:\d+: .item\(\) is read"):
        trace(ruled(remembers, "by running"), (image(),))


def test_names_of_new_modules_never_meet_old_ones():
    class Clash(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.relu_1 = conv(3, 3), nn.Identity()

        def forward(self, x):
            return F.relu(self.relu(F.relu(self.relu_1(x))))

    model = Clash()
    module = trace(model, (image(),))
    assert isinstance(module.relu, nn.Conv2d)
    assert torch.equal(module(image(2)), model(image(2)))
    assert solve(module, (image(),)).groups


def test_a_buffer_that_steers_the_forward_is_a_constant():
    model = Net(lambda s, x: s.a(x) if s.switch else s.b(x), a=conv(3, 4), b=conv(3, 5))
    model.register_buffer("switch", torch.tensor(1))
    assert "b" not in dict(trace(model, (image(),)).named_modules())


def test_two_outputs_keep_their_structure():
    model, inputs = random_model("several_outputs")
    out = trace(model, inputs)(*inputs)
    assert list(out) == ["class", "boxes"] and len(flat(out)) == 3


def test_a_model_of_tokens_that_wants_whole_numbers_is_told_what_to_do():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 3)

        def forward(self, x):
            return self.table(x)

    with pytest.raises(BadInput, match=r"float32 here.*\.long\(\)"):
        trace(Table(), (torch.zeros(1, 4),))


def test_a_graph_inside_of_a_model_is_traced_as_its_layers():
    inner = nn.Sequential(conv(3, 4), nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), conv(4, 5)))
    inside = trace(inner.eval(), (image(),))
    model = Net(lambda s, x: s.after(s.inside(x)), inside=inside, after=nn.Sequential(conv(5, 2), nn.ReLU())).eval()
    traced = trace(model, (image(),))
    assert torch.equal(traced(image()), model(image()))
    assert traced.state_dict().keys() == model.state_dict().keys()


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4)).eval()


def pickled(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize(
    "way", [copy.deepcopy, pickled, torch.fx.symbolic_trace, lambda m: m.forward, lambda m: torch.fx.GraphModule(m, m.graph)]
)
def test_whoever_looks_first_at_a_traced_model_finds_its_forward(way):
    net, x = small(), torch.randn(2, 3, 8, 8)
    module = trace(net, (x[:1],))
    got = way(module)(x)
    assert torch.equal(got, net(x)) and torch.equal(module(x), got)


def test_the_code_that_is_shown_is_that_of_the_graph():
    module = trace(small(), (torch.randn(1, 3, 8, 8),))
    assert str(inspect.signature(module.forward)) == "(input)"
    again = trace(small(), (torch.randn(1, 3, 8, 8),))
    assert str(again) == str(module) and again.code == module.code and "return" in module.code


def test_submodules_are_those_of_torch_in_the_same_order():
    shared = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    net = nn.ModuleDict({"a": nn.Sequential(shared, nn.ReLU()), "b": shared, "c": nn.Module()})
    net["c"].register_module("none", None)
    assert submodules(net) == list(net.named_modules())
    assert submodules(net, again=True) == list(net.named_modules(remove_duplicate=False))


class Looks(nn.Module):
    """Notes how layers are called while it runs."""

    def __init__(self):
        super().__init__()
        self.conv, self.fails = nn.Conv2d(3, 4, 1), False
        self.seen = []

    def forward(self, x):
        self.seen.append(nn.Module.__call__)
        if self.fails:
            raise ValueError("on purpose")
        return self.conv(x)


@pytest.mark.parametrize("fails", [False, True])
def test_tracing_changes_no_class_but_those_of_the_model_and_these_for_a_while(fails):
    net, usual = Looks(), nn.Module.__call__
    net.fails, net.seen = fails, (seen := [])
    net.__class__.__deepcopy__ = lambda self, memo: self  # so that what it has seen is seen here
    try:
        if fails:
            with pytest.raises(BadInput, match="on purpose"):
                trace(net, (image(),))
        else:
            trace(net, (image(),))
    finally:
        del net.__class__.__deepcopy__
    assert seen and all(each is usual for each in seen)
    for kind in (nn.Module, nn.Conv2d, Looks):
        assert ("__call__" in vars(kind), "__getattr__" in vars(kind)) == (kind is nn.Module,) * 2


class Scaled(nn.Module):
    """Is called in a way of its own, which goes on to that of nn.Module."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def __call__(self, x):
        return super().__call__(2 * x)

    def forward(self, x):
        return self.conv(x)


class Held(nn.Module):
    """Holds a part of no class of its own."""

    def __init__(self):
        super().__init__()
        self.part = nn.Module()
        self.part.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return self.part.conv(x)


def test_a_part_of_no_class_of_its_own_leaves_all_others_as_they_were():
    net = Held().eval()
    module = trace(net, (image(),))
    assert torch.equal(module(image(2)), net(image(2)))
    assert trace(nn.Sequential(nn.Conv2d(3, 4, 1)), (image(),))(image()).shape == (1, 4, 8, 8)


def test_a_part_that_is_called_in_a_way_of_its_own_stays_so():
    net, own = nn.Sequential(Scaled(), nn.ReLU()).eval(), Scaled.__call__
    module = trace(net, (image(),))
    assert Scaled.__call__ is own and torch.equal(module(image(2)), net(image(2)))
    assert modules_of(module) == ["Conv2d", "ReLU"]


class Begins(nn.Module):
    """Writes to the state that it begins with."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        h = x.new_zeros(x.shape[0], 4, x.shape[2], 8)
        h.add_(self.conv(x))
        return h + x.new_ones(x.size(0), 4, 1, 1)


def test_a_state_that_a_forward_makes_for_each_sample_is_a_constant_that_nobody_writes_to():
    net = Begins().eval()
    module = trace(net, (image(),))
    assert "new_zeros" not in {n.target for n in module.graph.nodes} and not module.state_dict().keys() - net.state_dict().keys()
    for size in (1, 3, 1, 2):
        assert torch.equal(module(image(size)), net(image(size)))
