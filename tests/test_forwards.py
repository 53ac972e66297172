"""Forwards as people write them: any Python around the layers, functions in their place, constants made on the way."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import distance, outputs, random_edits
from torch import Tensor, nn

from compress.artifact import Artifact
from compress.checkpoint.load import load
from compress.checkpoint.save import save
from compress.errors import BadInput, UnsupportedModel
from compress.graph.channels.solve import solve
from compress.graph.surgery.remove import keep, mask
from compress.graph.trace.trace import trace
from compress.selection.reach import reach

EXACT = 2e-5  # relative, float32


class Body(nn.Module):
    """Two convolutions and a head; what is written around them, the subclass says."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1), nn.Linear(6, 4)

    def run(self, x: Tensor) -> Tensor:
        return self.o(self.b(torch.relu(self.a(x))).mean((2, 3)))


class StarArguments(Body):
    def forward(self, x, *args, **kwargs):
        return self.predict(x, *args, **kwargs)

    def predict(self, x, profile=False, augment=None):
        return self.run(x) if augment is None else None


def returns_dictionaries(function):
    @functools.wraps(function)
    def wrapped(self, *args, **kwargs):
        as_tuple = kwargs.pop("return_tuple", None)
        found = function(self, *args, **kwargs)
        return found if as_tuple is None else tuple(found.values())

    return wrapped


class Decorated(Body):
    @returns_dictionaries
    def forward(self, pixels, labels=None, **kwargs):
        return {"logits": self.run(pixels)} if labels is None else None


class AsksTypes(Body):
    """As torchvision's DenseNet and detection models do."""

    def forward(self, x):
        features = [x] if isinstance(x, Tensor) else x
        assert all(isinstance(f, Tensor) for f in features)
        return self.run(torch.cat(features, 1))


class AsksTypesOfAttributes(Body):
    def forward(self, x):
        known = isinstance(x.shape, tuple) and isinstance(x.dtype, torch.dtype) and isinstance(x.ndim, int)
        return self.run(x if known else 2 * x)


class Unpacks(Body):
    def forward(self, x):
        n, _, h, w = x.shape
        first, *rest = list(torch.relu(self.a(x)).chunk(4, 1))
        x = torch.cat([first, *rest], 1)
        x = x.reshape((*x.shape[:-2], -1)).view(n, -1, h, w)
        for layer in (self.b,):
            x = layer(x)
        return self.o(x.mean((2, 3)))


class Blurs(Body):
    """With a fixed kernel, which is no parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.full((8, 1, 3, 3), 1 / 9))

    def forward(self, x):
        return self.o(self.b(F.conv2d(torch.relu(self.a(x)), self.kernel, padding=1, groups=8)).mean((2, 3)))


class Warns(Body):
    """As models of text do where padding is not masked."""

    def forward(self, x):
        if 7.0 in x[:, 0] or (x > 1e6).any():
            self.warned = True
        if x.max() > 1e6:
            print("large values")
        return self.run(x)


class MadeInForward(Body):
    def forward(self, x):
        h, w = x.shape[-2:]
        rows = torch.linspace(-1, 1, h, device=x.device)
        columns = torch.arange(w, device=x.device) / w
        grid = torch.stack(torch.meshgrid(rows, columns.type_as(x), indexing="ij")).sum(0)
        x = self.a(x) + grid + torch.zeros(1, 1, 1, 1, device=x.device) + torch.full((h, w), 0.5)
        return self.o(self.b(torch.relu(x)).mean((2, 3)))


class Grid(nn.Module):
    """What a detection head computes from the sizes of its maps, and keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.shape: Any = None

    def forward(self, x):
        if self.shape != x.shape:
            self.places = x.new_full((x.shape[2] * x.shape[3], 1), 2.0) + torch.arange(x.shape[2] * x.shape[3])[:, None]
            self.shape = x.shape
        return x.flatten(2) * self.places.T


class Keeps(Body):
    def __init__(self) -> None:
        super().__init__()
        self.grid = Grid()

    def forward(self, x):
        return x.anything() if hasattr(x, "anything") else self.later(x)

    def later(self, x):
        return self.o(self.grid(self.b(torch.relu(self.a(x)))).mean(2))


class Same(nn.Conv2d):
    def forward(self, x):
        high, wide = self.weight.shape[-2:]
        ph, pw = (
            max((math.ceil(n / s) - 1) * s + k - n, 0) for n, s, k in zip(x.shape[-2:], self.stride, (high, wide), strict=True)
        )
        x = F.pad(x, [pw // 2, pw - pw // 2, ph // 2, ph - ph // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, (0, 0), self.dilation, self.groups)


class Standardized(nn.Conv2d):
    def forward(self, x):
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, w / (w.std((1, 2, 3), keepdim=True) + 1e-5), self.bias)


def of_layers(kind: type[nn.Conv2d]) -> nn.Module:
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))
    depthwise = kind(8, 8, 3, groups=8)
    return nn.Sequential(kind(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU6(), depthwise, nn.ReLU(), kind(8, 6, 1), *head)


class Functions(nn.Module):
    """Everything on parameters of the module's own."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {"kernel": (8, 3, 3, 3), "gamma": (8,), "beta": (8,), "up": (8, 6, 2, 2), "fc_weight": (4, 6), "matrix": (6, 6)}
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.rand(shape) * 0.3))

    def forward(self, x):
        x = torch.relu(F.group_norm(F.conv2d(x, self.kernel, padding=1), 4, self.gamma, self.beta))
        x = torch.relu(F.conv_transpose2d(x, self.up, stride=2)).mean((2, 3))
        return F.linear(torch.relu(x @ self.matrix), self.fc_weight)


class Bare(Body):
    """Norms with one of weight and bias, or none."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.shift = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.rand(8))

    def forward(self, x):
        x = F.group_norm(F.group_norm(self.a(x), 4, self.gamma), 8, None, self.shift)
        x = self.b(torch.relu(x))
        return self.o(F.layer_norm(x, x.shape[2:]).square().mean((2, 3)))


class ShapedLike(Body):
    def forward(self, x):
        x = torch.relu(self.a(x)).permute(0, 2, 3, 1)
        x = x.reshape(len(x), -1, 8).reshape(x.shape[:-1] + (-1,)).permute(0, 3, 1, 2)  # noqa: RUF005
        return self.o(self.b(x).mean((2, 3)))


@torch.fx.wrap
def grid_of(height, width):
    return torch.arange(height)[:, None] / width + torch.arange(width)


class Wraps(Body):
    def forward(self, x):
        return self.o(self.b(torch.relu(self.a(x)) + grid_of(x.shape[2], x.shape[3])).mean((2, 3)))


class Replaces(nn.Module):
    """A buffer of which nothing is left after the first call, so that its place in memory is free."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.zeros(1, 1, 3), persistent=False)
        self.gate, self.of_places = nn.Parameter(torch.rand(6)), nn.Linear(3, 6)

    def forward(self, x):
        if self.places.shape[1] != x.shape[2]:
            self.places = torch.zeros(1, x.shape[2], 3)
            for i in range(3):
                self.places[:, :, i] = torch.arange(x.shape[2]) * i
        x += self.of_places(self.places.expand(len(x), -1, -1)).permute(0, 2, 1)
        return x * torch.sigmoid(self.gate.view(1, -1, 1))


class ReplacesSeveral(Body):
    def __init__(self) -> None:
        super().__init__()
        self.several = nn.ModuleList(Replaces() for _ in range(12))

    def forward(self, x):
        x = self.b(torch.relu(self.a(x))).flatten(2)
        for layer in self.several:
            x = layer(x)
        return self.o(x.mean(2))


IMAGES: dict[str, Any] = {
    "norms without weight or bias": Bare,
    "the shape of another": ShapedLike,
    "a function that is kept whole": Wraps,
    "buffers that are replaced": ReplacesSeveral,
    "*args and **kwargs": StarArguments,
    "a decorator that pops keywords": Decorated,
    "isinstance": AsksTypes,
    "isinstance of a shape": AsksTypesOfAttributes,
    "unpacked shapes and lists": Unpacks,
    "tensors made in forward": MadeInForward,
    "questions that decide nothing": Warns,
    "a fixed kernel": Blurs,
    "what is kept between calls": Keeps,
    "padding as the size asks for": lambda: of_layers(Same),
    "standardized weights": lambda: of_layers(Standardized),
    "functions of parameters": Functions,
}


def drawn(name: str) -> nn.Module:
    torch.manual_seed(0)
    return IMAGES[name]().eval()


def images(count: int = 1, seed: int = 0) -> tuple[Tensor, ...]:
    return (torch.randn(count, 3, 9, 8, generator=torch.Generator().manual_seed(seed)),)


@pytest.mark.parametrize("name", IMAGES)
def test_it_is_traced_removed_stored_and_trained_on(name: str, tmp_path: Path):
    model = drawn(name)
    module = trace(model, images())
    assert module.meta["opaque"] == {}
    x = images(3, seed=1)
    assert distance(outputs(module, x), outputs(model, x)) < EXACT
    channels = solve(module, images())
    edits = random_edits(channels.removable, 0)
    assert len(edits) >= 2
    small = keep(module, channels, edits)
    assert distance(outputs(small, x), outputs(mask(module, channels, edits), x)) < EXACT
    save(Artifact(small, images()), tmp_path / "model.compressed")
    again = load(tmp_path / "model.compressed").train()
    assert distance(outputs(again.eval(), x), outputs(small, x)) == 0
    out = again.train()(*images(4))
    next(iter(out.values())).sum().backward() if isinstance(out, dict) else out.sum().backward()
    assert all(p.grad is not None for p in again.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", IMAGES)
def test_all_of_it_is_within_reach(name: str):
    found = reach(Artifact(trace(drawn(name), images()), images()))
    assert found.macs > 0.6 and found.params > 0.5
    assert {o.why for o in found.obstacles if "output" not in o.why and "input" not in o.why} == set()


def test_layers_of_ones_own_class_keep_the_names_of_their_parameters():
    model = drawn("padding as the size asks for")
    module = trace(model, images())
    assert module.state_dict().keys() == model.state_dict().keys()
    assert type(module.get_submodule("0")) is nn.Conv2d and module.meta["plain"] == {}


def test_a_weight_that_is_computed_is_told():
    assert list(trace(drawn("standardized weights"), images()).meta["plain"]) == ["0", "3", "5"]


def test_a_parameter_of_two_layers_stays_one():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(6, 8))

        def forward(self, x):
            return F.linear(torch.tanh(F.linear(x, self.table)), self.table.t())

    module = trace(Tied().eval(), (torch.randn(1, 8),))
    assert [p.shape for p in module.parameters()] == [(6, 8)]


def test_a_table_that_is_looked_up_by_a_function_is_a_layer():
    class Scaled(nn.Embedding):
        def forward(self, input):
            return super().forward(input) * self.embedding_dim**0.5

    model = nn.Sequential(Scaled(12, 8, padding_idx=0), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8), nn.Linear(8, 12, bias=False))
    model[4].weight = model[0].weight
    x = (torch.randint(12, (2, 5)),)
    module = trace(model.eval(), x)
    assert type(module.get_submodule("0")) is nn.Embedding and module.state_dict().keys() == model.state_dict().keys()
    assert module.get_submodule("0").weight is module.get_submodule("4").weight
    assert distance(outputs(module, x), outputs(model, x)) == 0
    channels = solve(module, x)
    edits = random_edits(channels.removable, 0)
    assert [g.channels for g in channels.removable] == [8, 6]
    assert distance(outputs(keep(module, channels, edits), x), outputs(mask(module, channels, edits), x)) < EXACT


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_of_torch_is_written_out(batch_first: bool):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=batch_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    model = nn.Sequential(nn.Linear(8, 16), encoder, nn.Linear(16, 3)).eval()
    x = (torch.randn(1, 6, 8) if batch_first else torch.randn(6, 1, 8),)
    module = trace(model, x)
    channels = solve(module, x)
    widths = {g.name: g.channels for g in channels.removable}
    assert widths["1.layers.0.self_attn.in_proj"] == 4 and widths["1.layers.1.linear1"] == 32
    edits = random_edits(channels.removable, 0)
    assert distance(outputs(module, x), outputs(model, x)) < EXACT
    assert distance(outputs(keep(module, channels, edits), x), outputs(mask(module, channels, edits), x)) < EXACT


@pytest.mark.parametrize("masked", ["float", "bool"])
def test_attention_between_two_inputs_and_under_a_mask(masked: str):
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(16, 4, kdim=8, vdim=8, batch_first=True)
            self.own = nn.MultiheadAttention(16, 4, batch_first=True)
            mask = torch.ones(6, 6).triu(1)
            self.register_buffer("mask", mask.bool() if masked == "bool" else mask * -1e4)

        def forward(self, x, memory):
            x = x + self.own(x, x, x, attn_mask=self.mask, need_weights=False)[0]
            return self.attn(x, memory, memory)[0]

    torch.manual_seed(0)
    model, x = Decoder().eval(), (torch.randn(1, 6, 16), torch.randn(1, 5, 8))
    module = trace(model, x)
    assert not any(isinstance(m, nn.MultiheadAttention) for m in module.modules())
    assert distance(outputs(module, x), outputs(model, x)) < EXACT


def test_wanted_weights_of_attention_keep_the_layer():
    class Shows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(16, 4, batch_first=True)

        def forward(self, x):
            return self.attn(x, x, x)

    module = trace(Shows().eval(), (torch.randn(1, 6, 16),))
    assert any(isinstance(m, nn.MultiheadAttention) for m in module.modules())


def branches_on_data(s: Body, x: Tensor) -> Tensor:
    return s.run(x) if float(x.mean()) > 0 else s.run(-x)


def hides_an_operation(s: Body, x: Tensor) -> Tensor:
    if hasattr(x, "anything"):  # as symbols have
        return x.anything()
    return s.run(torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(x * 1.0)))


def depends_on_the_batch(s: Body, x: Tensor) -> Tensor:
    return s.run(x) if isinstance(x, Tensor) and len(x) == 1 else s.run(2 * x)


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (branches_on_data, r"float\(\) reads the values of a tensor that depends on the input"),
        (hides_an_operation, "uses a tensor that depends on the input in a way that was not seen"),
        (depends_on_the_batch, "what the forward does for a batch of 1 is not what it does for one of 2"),
    ],
)
def test_what_no_graph_can_say_is_refused_with_the_line(call: Any, why: str):
    class Odd(Body):
        def forward(self, x):
            return call(self, x)

    with pytest.raises(UnsupportedModel, match=why) as caught:
        trace(Odd().eval(), images())
    assert call is depends_on_the_batch or "test_forwards.py:" in str(caught.value)


class Says(Body):
    def forward(self, x):
        return "nothing"


class Object(Body):
    def forward(self, x):
        return type("Found", (), {"logits": self.run(x)})()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")  # of such files
@pytest.mark.parametrize(
    ("make", "error", "why"),
    [
        (Says, UnsupportedModel, "gives no tensor but 'nothing'"),
        (Object, UnsupportedModel, "its output is a Found"),
        (lambda: torch.jit.script(of_layers(nn.Conv2d)), UnsupportedModel, "TorchScript"),
        (lambda: of_layers(nn.Conv2d).to("meta"), BadInput, "0.weight is on the meta device"),
        (lambda: torch.ao.quantization.quantize_dynamic(of_layers(nn.Conv2d), {nn.Linear}), UnsupportedModel, "is quantized"),
    ],
)
def test_what_is_no_plain_network_is_refused_by_its_kind(make: Any, error: type[Exception], why: str):
    with pytest.raises(error, match=why):
        trace(make().eval(), images())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch 2.11, on its own import
def test_a_compiled_module_is_the_one_inside():
    model = drawn("*args and **kwargs")
    module = trace(torch.compile(model), images())
    assert module.state_dict().keys() == model.state_dict().keys()


def test_a_bias_that_is_a_buffer_stays_as_it_is_in_training():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 3))
            self.register_buffer("bias", torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight, self.bias)

    model, x = Fixed().eval(), torch.randn(1, 3)
    module = trace(model, (x,))
    assert torch.equal(module(x), model(x))
    assert [n for n, p in module.named_parameters() if p.requires_grad] == [n for n in module.state_dict() if "weight" in n]
