"""What a model costs: against counts known by arithmetic, and laws that any counting must keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision.models as zoo
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace
from torchvision.ops import DeformConv2d

from compress.graph.trace.trace import trace
from compress.measure.cost import Cost, cost


def counted(module: nn.Module, *shape: int, batch: int = 1) -> Cost:
    return cost(symbolic_trace(module.eval()), (torch.zeros(batch, *shape),))


def vgg16_bn_one_fc() -> nn.Module:
    widths = [64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M"]
    layers: list[nn.Module] = []
    channels = 3
    for width in widths:
        if isinstance(width, str):
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def test_vgg16_has_its_known_parameters_and_macs():
    found = counted(vgg16_bn_one_fc(), 3, 32, 32)
    assert found.params == 14_728_266
    assert found.macs == 313_201_664  # 313.2 M


def test_resnet18_has_its_known_parameters_and_macs():
    found = counted(zoo.resnet18(), 3, 224, 224)
    assert found.params == 11_689_512
    assert found.macs == 1_814_073_344  # 1.814 G


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(4, 8, 3, groups=4), (4, 8, 8), 6 * 6 * 8 * 1 * 9),
        (nn.Conv1d(4, 8, 3, groups=4), (4, 8), 6 * 8 * 1 * 3),
        (nn.ConvTranspose2d(4, 6, 3, 2, 1), (4, 8, 8), 8 * 8 * 4 * 6 * 9),
        (nn.ConvTranspose2d(4, 6, 2, 2, groups=2), (4, 8, 8), 8 * 8 * 4 * 3 * 4),
        (nn.Linear(4, 8), (4,), 32),
        (nn.Linear(4, 8), (5, 4), 5 * 32),
        (nn.BatchNorm2d(4), (4, 8, 8), 0),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_macs_of_a_layer_are_its_arithmetic_whatever_the_batch(layer: nn.Module, shape: tuple[int, ...], macs: int, batch: int):
    assert counted(nn.Sequential(layer), *shape, batch=batch).macs == macs


class SelfAttention(nn.Module):
    def __init__(self, need_weights: bool):
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, x, x, need_weights=self.need_weights)[0]


@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_counts_projections_and_both_products(need_weights: bool):
    found = counted(SelfAttention(need_weights), 5, 8)
    projections, products = 4 * 5 * 8 * 8, 2 * 5 * 5 * 8
    assert found.macs == projections + products
    assert [(layer.name, layer.kind) for layer in found.layers] == [("attend", "MultiheadAttention")]


class Products(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        attended = F.scaled_dot_product_attention(x, x, x)
        scores = torch.matmul(x, x.transpose(-1, -2))
        return attended.sum() + scores.sum() + torch.einsum("bhij,bhkj->bhik", x, x).sum()


def test_functional_products_are_counted_and_named():
    found = counted(Products(), 2, 5, 8)
    assert {layer.name: layer.macs for layer in found.layers} == {
        "scaled_dot_product_attention": 800,
        "matmul": 400,
        "einsum": 400,
    }


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x)) * self.scale


def test_a_shared_layer_has_its_parameters_once_and_its_macs_twice():
    found = counted(Twice(), 4, 8, 8)
    assert found.params == 20 + 4 == sum(layer.params for layer in found.layers)
    assert found.macs == 2 * 64 * 16
    assert {layer.name for layer in found.layers} == {"conv", "scale"}
    assert found.weight_bytes == 24 * 4


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.there, self.back = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.back.weight = self.there.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.there(x))


def test_a_weight_that_two_layers_share_counts_where_it_is_first_used():
    found = counted(Tied(), 4)
    assert {layer.name: (layer.params, layer.macs) for layer in found.layers} == {"there": (16, 16), "back": (0, 16)}
    assert (found.params, found.weight_bytes) == (16, 64)


def test_layers_add_up_to_the_whole():
    found = counted(zoo.shufflenet_v2_x0_5(), 3, 64, 64)
    assert sum(layer.macs for layer in found.layers) == found.macs
    assert sum(layer.params for layer in found.layers) == found.params


class Residual(nn.Module):
    def __init__(self, inplace: bool = False):
        super().__init__()
        self.a, self.act, self.b = nn.Conv2d(2, 4, 1), nn.ReLU(inplace), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.b(self.act(self.a(x)))


@pytest.mark.parametrize("inplace", [False, True])
def test_the_peak_counts_what_is_alive_at_once(inplace: bool):
    # 100 positions: x is 2 channels and lives to the sum; at the activation 4 + 4 channels stand beside it.
    assert counted(Residual(inplace), 2, 10, 10).peak_activation_bytes == 100 * 4 * (2 + 4 + 4)


class Views(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        left, right = x.transpose(1, 2).flatten(2).chunk(2, dim=2)
        return left + right


def test_a_view_shares_the_memory_of_its_source():
    # x (800 bytes) is only looked at through views until the flatten of a transpose copies it; the sum is half of that.
    found = counted(Views(), 2, 10, 10)
    assert found.peak_activation_bytes == 800 + 800


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 10, 10))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.position.transpose(1, 2)


def test_a_parameter_seen_through_a_view_is_a_weight_and_no_activation():
    found = counted(Embedded(), 10, 10)
    assert found.peak_activation_bytes == 400 + 400  # x and the sum
    assert found.weight_bytes == 400


def test_peak_memory_grows_with_the_batch_but_not_its_weights():
    found = counted(Residual(), 2, 10, 10)
    assert found.peak_memory_bytes(3) - found.peak_memory_bytes(1) == 2 * found.peak_activation_bytes
    assert found.peak_memory_bytes(1) == found.weight_bytes + found.peak_activation_bytes


class LooksAtValues(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum().item() > -1 else x


def test_a_leaf_that_looks_at_values_is_counted_by_running_it():
    graph = torch.fx.Graph()
    graph.output(graph.call_module("leaf", (graph.placeholder("x"),)))
    module = GraphModule(nn.ModuleDict({"leaf": LooksAtValues()}), graph)
    found = cost(module.eval(), (torch.zeros(2, 4),))
    assert (found.macs, found.params) == (16, 20)


def test_counting_leaves_the_model_as_it_was():
    module = symbolic_trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)).eval())
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fast = torch.backends.mha.get_fastpath_enabled()
    cost(module, (torch.zeros(1, 3, 8, 8),))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert type(module.get_parameter("0.weight")) is nn.Parameter


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.Module], **settings: Any):
        super().__init__()
        self.layer = kind(6, 5, batch_first=True, **settings)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


@pytest.mark.parametrize("settings", [{}, {"num_layers": 2, "bidirectional": True}, {"num_layers": 2, "proj_size": 3}])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_count_each_weight_once_for_every_step(kind: type[nn.Module], settings: dict[str, Any]):
    if "proj_size" in settings and kind is not nn.LSTM:
        return  # only an LSTM has it
    model = Recurrent(kind, **settings)
    weights = sum(p.numel() for name, p in model.named_parameters() if "weight" in name)
    assert counted(model, 7, 6).macs == 7 * weights


class Pairs(nn.Module):
    def __init__(self, functional: bool):
        super().__init__()
        self.bilinear = nn.Bilinear(3, 4, 5)
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        one, other = x[..., :3], x[..., 3:]
        return F.bilinear(one, other, self.bilinear.weight) if self.functional else self.bilinear(one, other)


@pytest.mark.parametrize("functional", [True, False])
def test_a_bilinear_layer_counts_its_weight_once_for_every_row(functional: bool):
    assert counted(Pairs(functional), 2, 7).macs == 2 * 3 * 4 * 5


class Deformed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offsets = nn.Conv2d(4, 18, 1)
        self.conv = DeformConv2d(4, 6, 3, stride=2, padding=1, groups=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x, self.offsets(x)[..., ::2, ::2])


def test_deformable_convolution_counts_as_a_convolution_of_its_size():
    x = torch.zeros(1, 4, 8, 8)
    assert cost(trace(Deformed(), (x,)), (x,)).macs == 64 * 4 * 18 + 16 * 2 * 9 * 6


class OfVectors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_a_matrix_by_a_vector_is_counted():
    assert counted(OfVectors(), 3, 5).macs == 15


class Own(nn.Module):
    """A product that no counter sees."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # a leaf
            x = x + 1
        return (x[:, None] * self.weight).sum(2)


def test_layers_whose_products_cannot_be_counted_are_named_and_those_without_any_are_not():
    x = torch.zeros(1, 4)
    kinds = nn.Sequential(Own(), nn.Linear(4, 4), nn.LayerNorm(4), nn.PReLU(4))
    assert cost(trace(kinds, (x,)), (x,)).uncounted == ("0 (Own)",)
    norms = nn.Sequential(nn.LayerNorm((2, 3, 4)), nn.BatchNorm2d(2))
    assert counted(norms, 2, 3, 4).uncounted == ()
