"""The one table of operations: a concern that forgets an operation is found here."""

from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compress.artifact import Artifact, apply
from compress.checkpoint import allowlist
from compress.checkpoint.deserialize import stored_tensors
from compress.checkpoint.serialize import from_json, to_json
from compress.edits import Keep, Plan
from compress.graph import operations
from compress.graph.channels import dispatch
from compress.graph.trace.trace import trace

X = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def between(between: Callable[[Tensor], Tensor]) -> Artifact:
    """A convolution, something, a convolution."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(between(self.first(x)))

    return Artifact(trace(Net().eval(), (X,)), (X[:1],))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.divide(x, 2.0),
        lambda x: x.divide(2.0),
        lambda x: x.multiply(3.0),
        lambda x: x.subtract(1.0),
        lambda x: x.expm1(),
        lambda x: x.clone().clamp_max_(0.5),
        lambda x: x.clone().clamp_min_(0.5),
        lambda x: torch.max_pool2d(x, 2),
        lambda x: x.type(torch.float32),
    ],
)
def test_what_can_be_pruned_can_be_saved_and_comes_back(call: Callable[[Tensor], Tensor]):
    dense = between(call)
    assert dense.channels.group("first").frozen is None
    small = apply(Plan((Keep("first", 6, (0, 2, 5)),)), dense).module
    again = from_json(to_json(small), {name: t.detach().clone() for name, t, _ in stored_tensors(small)})
    assert torch.equal(small(X), again(X)) and again.get_submodule("first").out_channels == 3


def test_every_operation_of_the_table_is_one_that_a_checkpoint_may_name():
    rules = {row.rule for row in operations.OPERATIONS}
    assert operations.functions(*rules) <= set(allowlist.FUNCTION_NAMES)
    assert {name for name in operations.methods(*rules) if hasattr(Tensor, name)} == set(allowlist.METHODS)
    kinds = {kind for row in operations.LAYERS for kind in operations.classes(row).values()}
    assert kinds == set(allowlist.LAYER_NAMES)
    assert kinds >= operations.ACTIVATIONS | operations.AFFINE_MAPS


@pytest.mark.parametrize("row", [row for row in operations.OPERATIONS if row.rule], ids=lambda row: row.rule)
def test_a_function_with_a_rule_has_one_in_the_solver(row: operations.Operations):
    followed = dispatch._ENTRIES | set(dispatch._SPECIAL) | {operator.getitem}
    assert operations.functions(row.rule) <= followed


@pytest.mark.parametrize("column", ["torch", "functional", "operator", "methods", "linalg"])
def test_no_name_stands_in_two_rows(column: str):
    names = [name for row in operations.OPERATIONS for name in getattr(row, column).split()]
    assert sorted(names) == sorted(set(names))


def test_no_layer_stands_in_two_rows():
    names = [name for row in operations.LAYERS for name in row.names.split()]
    assert sorted(names) == sorted(set(names))


def test_a_tensor_method_has_one_rule():
    rules = {row.rule for row in operations.OPERATIONS}
    named = [name for rule in sorted(rules) for name in operations.methods(rule)]
    assert len(named) == len(set(named)) and set(named) == operations.methods(*rules)
    assert "matmul" in operations.methods("product") and "matmul" not in operations.methods("elementwise", "movement")
