"""A product with a parameter is a layer, however it is written; one with a table of numbers leaves other axes free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from oracles import distance, outputs, random_edits
from torch import Tensor, nn

from compress.artifact import Artifact
from compress.graph import letters
from compress.graph.surgery.remove import keep, mask
from compress.graph.trace.trace import trace

EXACT = 1e-5  # relative: sums in another order
TOKENS, WIDTH, HEADS, OUT = 5, 12, 3, 8


class Multiplies(nn.Module):
    """Tokens of WIDTH channels, multiplied with a parameter."""

    def __init__(self, product: Callable[[Any, Tensor], Tensor], *shape: int, buffer: bool = False):
        super().__init__()
        self.embed, self.norm, self.product = nn.Linear(6, WIDTH), nn.Linear(WIDTH, WIDTH), product
        weight = torch.randn(shape) / 3
        self.register_buffer("w", weight) if buffer else self.register_parameter("w", nn.Parameter(weight))
        self.head = nn.LazyLinear(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.product(self, self.norm(self.embed(x).relu()).relu()).relu().flatten(2))


X = torch.randn(3, TOKENS, 6, generator=torch.Generator().manual_seed(0))


def traced(product: Callable[[Any, Tensor], Tensor], *shape: int, buffer: bool = False) -> tuple[nn.Module, Artifact]:
    torch.manual_seed(0)
    net = Multiplies(product, *shape, buffer=buffer).eval()
    with torch.no_grad():
        net(X)
    return net, Artifact(trace(net, (X[:1],)), (X[:1],))


LINEAR: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "einsum that makes two axes": (lambda s, x: torch.einsum("bnd,edh->bneh", x, s.w), (HEADS, WIDTH, OUT)),
    "einsum of slots": (lambda s, x: torch.einsum("bnd,des->bnes", x, s.w).softmax(1), (WIDTH, HEADS, 4)),
    "einsum with an ellipsis": (lambda s, x: torch.einsum("...d,ed", x, s.w), (OUT, WIDTH)),
    "einsum the other way round": (lambda s, x: torch.einsum("ed,bnd->bne", s.w, x), (OUT, WIDTH)),
    "einsum over two axes": (lambda s, x: torch.einsum("bnhd,hde->bne", x.unflatten(2, (3, 4)), s.w), (3, 4, OUT)),
    "a vector": (lambda s, x: torch.einsum("bnd,d->bn", x, s.w)[..., None] * x, (WIDTH,)),
    "matmul with a vector": (lambda s, x: (x @ s.w)[..., None] * x, (WIDTH,)),
    "a weight that is normalized": (lambda s, x: x @ F.normalize(s.w, dim=1).t(), (OUT, WIDTH)),
    "a weight that is scaled": (lambda s, x: torch.matmul(x, (s.w * 0.5).T), (OUT, WIDTH)),
    "cosines": (lambda s, x: F.linear(x, F.normalize(s.w)), (OUT, WIDTH)),
    "the parameter on the left": (lambda s, x: (s.w @ x.transpose(1, 2)).transpose(1, 2), (OUT, WIDTH)),
    "a matrix for each head": (lambda s, x: torch.matmul(x.unsqueeze(1), s.w).transpose(1, 2), (HEADS, WIDTH, OUT)),
    "tensordot": (lambda s, x: torch.tensordot(x, s.w, dims=([2], [1])), (OUT, WIDTH)),
    "tensordot over the last axis": (lambda s, x: torch.tensordot(x, s.w, 1), (WIDTH, OUT)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_a_product_with_a_parameter_is_a_linear_layer(name: str):
    net, model = traced(LINEAR[name][0], *LINEAR[name][1])
    assert distance(outputs(model.module, (X,)), outputs(net, (X,))) < EXACT
    kinds = {type(model.module.get_submodule(str(n.target))) for n in model.module.graph.nodes if n.op == "call_module"}
    assert kinds == {nn.Linear, nn.ReLU} and not list(model.module.graph.find_nodes(op="get_attr"))
    edits = random_edits(model.channels.removable, 1)
    small = keep(model.module, model.channels, edits)
    assert {"embed", "norm"} <= {edit.layer for edit in edits}
    assert distance(outputs(small, (X,)), outputs(mask(model.module, model.channels, edits), (X,))) < EXACT


GROUPED: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "experts": (lambda s, x: torch.einsum("bned,edh->bneh", x.unflatten(2, (3, 4)), s.w), (3, 4, OUT)),
    "experts in front": (
        lambda s, x: torch.einsum("besd,edh->besh", x.unflatten(2, (3, 4)).transpose(1, 2), s.w).transpose(1, 2),
        (3, 4, OUT),
    ),
    "matmul of a stack": (lambda s, x: (x.unflatten(2, (3, 4)).transpose(1, 2) @ s.w).transpose(1, 2), (3, 4, OUT)),
    "a stack of vectors": (lambda s, x: torch.einsum("bnhd,hd->bnh", x.unflatten(2, (3, 4)), s.w), (3, 4)),
}


@pytest.mark.parametrize("name", GROUPED)
def test_a_product_with_a_matrix_for_each_of_several_parts_is_a_grouped_convolution(name: str):
    net, model = traced(GROUPED[name][0], *GROUPED[name][1])
    assert distance(outputs(model.module, (X,)), outputs(net, (X,))) < EXACT
    (layer,) = (m for m in model.module.modules() if isinstance(m, nn.Conv1d))
    assert layer.groups == 3
    edits = random_edits(model.channels.removable, 1)
    small = keep(model.module, model.channels, edits)
    assert {"embed", "norm"} <= {edit.layer for edit in edits}
    assert distance(outputs(small, (X,)), outputs(mask(model.module, model.channels, edits), (X,))) < EXACT


TABLES: dict[str, tuple[Callable[[Any, Tensor], Tensor], tuple[int, ...]]] = {
    "an adjacency": (lambda s, x: s.w @ x, (TOKENS, TOKENS)),
    "an adjacency that is normalized": (lambda s, x: (s.w / s.w.abs().sum(1, keepdim=True)) @ x, (TOKENS, TOKENS)),
    "from the right": (lambda s, x: (x.transpose(1, 2) @ s.w).transpose(1, 2), (TOKENS, TOKENS)),
    "as einsum": (lambda s, x: torch.einsum("nm,bmd->bnd", s.w, x), (TOKENS, TOKENS)),
}


@pytest.mark.parametrize("buffer", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_a_product_along_the_positions_leaves_the_channels_free(name: str, buffer: bool):
    net, model = traced(TABLES[name][0], *TABLES[name][1], buffer=buffer)
    assert distance(outputs(model.module, (X,)), outputs(net, (X,))) < EXACT
    edits = random_edits(model.channels.removable, 1)
    assert {"embed", "norm"} <= {edit.layer for edit in edits}
    small = keep(model.module, model.channels, edits)
    assert distance(outputs(small, (X,)), outputs(mask(model.module, model.channels, edits), (X,))) < EXACT


@pytest.mark.parametrize("product", [lambda s, x: x @ s.w, lambda s, x: torch.einsum("bnd,de->bne", x, s.w)])
def test_a_fixed_matrix_loses_its_rows_for_the_channels_that_go_and_is_no_layer(product: Callable[[Any, Tensor], Tensor]):
    _, model = traced(product, WIDTH, OUT, buffer=True)
    assert [n.target for n in model.module.graph.find_nodes(op="get_attr")] == ["w"]
    edits = random_edits(model.channels.removable, 1)
    small = keep(model.module, model.channels, edits)
    assert {"embed", "norm"} <= {edit.layer for edit in edits} and small.w.shape[0] < WIDTH
    assert distance(outputs(small, (X,)), outputs(mask(model.module, model.channels, edits), (X,))) < EXACT


def test_what_a_tied_table_of_tokens_is_multiplied_with_can_go():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.mix = nn.Embedding(11, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            y = self.tokens(x.long().clamp(0, 10))
            return (y + self.mix(y).relu()) @ self.tokens.weight.t()

    torch.manual_seed(0)
    net, x = Tied().eval(), torch.arange(10.0).view(2, 5)
    model = Artifact(trace(net, (x[:1],)), (x[:1],))
    edits = random_edits(model.channels.removable, 0)
    assert edits
    small = keep(model.module, model.channels, edits)
    assert distance(outputs(small, (x,)), outputs(mask(model.module, model.channels, edits), (x,))) < EXACT


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("bnd,edh->bneh", [(2, 3, 4), (5, 4, 6)]),
        ("...d,ed", [(2, 3, 4), (5, 4)]),
        ("ij,jk", [(2, 3), (3, 4)]),
        ("b...,b...->...", [(2, 3), (2, 3)]),
    ],
)
def test_letters_of_an_einsum_are_those_of_torch(equation: str, shapes: list[tuple[int, ...]]):
    a, b = (torch.randn(shape) for shape in shapes)
    terms = letters.of_einsum(equation, [a.ndim, b.ndim])
    assert terms is not None and torch.equal(
        torch.einsum(f"{terms[0]},{terms[1]}->{terms[2]}", a, b), torch.einsum(equation, a, b)
    )


@pytest.mark.parametrize(
    "shapes", [((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((3,), (5, 3, 4)), ((5, 2, 3), (3,)), ((2, 3), (6, 5, 3, 4))]
)
def test_letters_of_a_matmul_are_those_of_torch(shapes: Any):
    a, b = (torch.randn(shape) for shape in shapes)
    terms = letters.of_matmul(a.ndim, b.ndim)
    assert terms is not None and torch.allclose(torch.einsum(f"{terms[0]},{terms[1]}->{terms[2]}", a, b), a @ b, atol=1e-6)


@pytest.mark.parametrize("dims", [1, 2, ([0], [1]), ([-1, 0], [0, 1])])
def test_letters_of_a_tensordot_are_those_of_torch(dims: Any):
    a, b = torch.randn(3, 2, 3), torch.randn(3, 3, 2) if dims != 2 else torch.randn(2, 3, 4)
    terms = letters.of_tensordot(dims, 3, 3)
    assert torch.allclose(torch.einsum(f"{terms[0]},{terms[1]}->{terms[2]}", a, b), torch.tensordot(a, b, dims), atol=1e-6)
