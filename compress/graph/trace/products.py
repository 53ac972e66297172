"""Products of an activation with a parameter become layers, whichever way they are written and whichever side has the parameter.

    bnd,edh->bneh       d is summed: a linear layer, with an output for each e and h
    nm,bmd->bnd         a linear layer along m
    besd,edh->besh      e is in all three: a convolution of one tap, with a group for each e

What is written here is F.linear and F.conv1d between permutations; `layers_for_functions` makes layers of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, Node

from compress.graph import letters
from compress.graph.operations import PRODUCT_METHODS, PRODUCTS
from compress.graph.trace.constants import Constants
from compress.graph.trace.lines import stands_for

_CONVOLUTIONS = (F.conv1d, F.conv1d, F.conv2d, F.conv3d)
"""By how many axes there are besides those of samples and channels."""


def present(graph: Graph) -> bool:
    """Whether there is any product, and a parameter or constant that might be one of its sides."""
    return bool(graph.find_nodes(op="get_attr")) and any(_is_product(node) for node in graph.nodes)


def layers_for_products(graph: Graph, constants: Constants) -> bool:
    """Write products with parameters as linear layers and convolutions.

    Args:
        graph: its nodes know their shapes; is changed.
        constants: of this graph.

    Returns:
        Whether there was any.
    """
    found = [product for node in graph.nodes if _is_product(node) and (product := _of(node, constants)) is not None]
    for product in found:
        product.write()
    return bool(found)


def _is_product(node: Node) -> bool:
    if node.op == "call_method":
        return node.target in PRODUCT_METHODS
    return node.op == "call_function" and (node.target in PRODUCTS or node.target in (torch.einsum, torch.tensordot))


def _of(node: Node, constants: Constants) -> _Product | None:
    """What a product with a parameter consists of; None where it is another one."""
    sides, terms = _written(node)
    known = [constants.is_known(side) for side in sides]
    if terms is None or sum(known) != 1 or not all(side.meta.get("shape") for side in sides):
        return None
    at = known.index(True)
    if not _learned(sides[at], constants):
        return None
    product = _Product(node, (sides[1 - at], sides[at]), (terms[1 - at], terms[at], terms[2]))
    return product if product.is_layer(constants) else None


def _written(node: Node) -> tuple[list[Node], list[str] | None]:
    """The two sides, and their letters with those of the result."""
    given: Sequence[Any] = node.args
    terms: list[str] | None = None
    if node.target is torch.einsum:
        rest = given[1:]
        given = rest[0] if len(rest) == 1 and isinstance(rest[0], tuple | list) else rest
    sides = [side for side in given[:2] if isinstance(side, Node)]
    axes = [len(side.meta.get("shape") or ()) for side in sides]
    if len(sides) == 2 and min(axes):
        if node.target is torch.einsum:
            terms = letters.of_einsum(node.args[0], axes) if len(given) == 2 else None
        elif node.target is torch.tensordot:
            dims = node.args[2] if len(node.args) > 2 else node.kwargs.get("dims", 2)
            terms = letters.of_tensordot(dims, *axes)
        else:
            terms = letters.of_matmul(*axes)
    return sides, terms


def _learned(weight: Node, constants: Constants) -> bool:
    """Whether a tensor is computed from parameters alone: what a buffer says, such as who is whose neighbor, is not learned."""
    behind, waiting = {weight}, [weight]
    while waiting:
        fresh = set(waiting.pop().all_input_nodes) - behind
        behind |= fresh
        waiting += fresh
    return all(isinstance(constants.value(n), nn.Parameter) for n in behind if n.op == "get_attr")


@dataclass(frozen=True)
class _Product:
    """A product of an activation with a weight, and the letters of their axes and of those of the result, as they are written."""

    node: Node
    sides: tuple[Node, Node]
    terms: tuple[str, str, str]

    def is_layer(self, constants: Constants) -> bool:
        """Whether each axis is summed, passed on or made, and a layer can say which."""
        alone = set(self.of_x) ^ set(self.of_weight)
        fits = all(self._size(0, c) == self._size(1, c) for c in self.of_x if c in self.of_weight)
        # What one side alone has and the result has not is summed there, which no layer does.
        if not fits or not self.summed or not self.rest or alone - set(self.terms[2]):
            return False
        # A table of positions that is computed, with a weight for each of them, is no convolution of many groups.
        direct = isinstance(constants.value(self.sides[1]), nn.Parameter)
        return not self.shared or (direct and len(self.rest) <= len(_CONVOLUTIONS))

    @property
    def of_x(self) -> str:
        return self._long(0)

    @property
    def of_weight(self) -> str:
        return self._long(1)

    def _long(self, side: int) -> str:
        """Without axes of length 1 that the other side has longer; of samples there may be one in an example."""
        own, other = self.terms[side], self.terms[1 - side]
        once = [c for c in own if c in other and self._size(side, c) == 1 < self._size(1 - side, c)]
        return "".join(c for i, c in enumerate(own) if c not in once or i + side == 0)

    @property
    def shared(self) -> str:
        """What is in all three."""
        return "".join(c for c in self.of_weight if c in self.of_x and c in self.terms[2])

    @property
    def summed(self) -> str:
        """What both sides have, and the result has not."""
        return "".join(c for c in self.of_weight if c in self.of_x and c not in self.terms[2])

    @property
    def made(self) -> str:
        """What the weight alone has."""
        return "".join(c for c in self.of_weight if c not in self.of_x)

    @property
    def rest(self) -> str:
        """What the activation alone has; samples first."""
        return "".join(c for c in self.of_x if c not in self.of_weight)

    def write(self) -> None:
        """Put the layer's function in the place of the product."""
        graph = self.node.graph
        with graph.inserting_before(self.node):
            y, axes = self._grouped() if self.shared else self._linear()
            self.node.replace_all_uses_with(self._permuted(y, axes, self.terms[2]))
        graph.erase_node(self.node)

    def _linear(self) -> tuple[Node, str]:
        x = self._permuted(self.sides[0], self.terms[0], self.rest + self.summed)
        x = self._joined(x, len(self.rest), len(self.summed))
        weight = self._permuted(self.sides[1], self.terms[1], self.made + self.summed)
        weight = self._joined(self._joined(weight, len(self.made), len(self.summed)), 0, len(self.made))
        y = self._call("call_function", F.linear, x, weight)
        return self._apart(y, -1, self.made), self.rest + self.made

    def _grouped(self) -> tuple[Node, str]:
        samples, *places = self.rest
        x = self._permuted(self.sides[0], self.terms[0], samples + self.shared + self.summed + "".join(places))
        x = self._joined(x, 1, len(self.shared + self.summed))
        weight = self._permuted(self.sides[1], self.terms[1], self.shared + self.made + self.summed)
        weight = self._joined(weight, len(self.shared + self.made), len(self.summed))
        weight = self._joined(weight, 0, len(self.shared + self.made))
        for _ in range(max(1, len(places))):
            weight = self._call("call_method", "unsqueeze", weight, -1)
        if not places:
            x = self._call("call_method", "unsqueeze", x, -1)
        groups = 1
        for c in self.shared:
            groups *= self._size(1, c)
        y = self._call("call_function", _CONVOLUTIONS[len(places)], x, weight, None, 1, 0, 1, groups)
        if not places:
            y = self._call("call_method", "squeeze", y, -1)
        return self._apart(y, 1, self.shared + self.made), samples + self.shared + self.made + "".join(places)

    def _permuted(self, x: Node, now: str, then: str) -> Node:
        """Axes in another order, without those that are missing there."""
        for d in reversed([d for d, c in enumerate(now) if c not in then]):
            x = self._call("call_method", "squeeze", x, d)
        now = "".join(c for c in now if c in then)
        return x if now == then else self._call("call_method", "permute", x, *(now.index(c) for c in then))

    def _joined(self, x: Node, first: int, count: int) -> Node:
        """So many axes as one."""
        if count == 0:
            return self._call("call_method", "unsqueeze", x, first)
        return x if count == 1 else self._call("call_method", "flatten", x, first, first + count - 1)

    def _apart(self, y: Node, axis: int, names: str) -> Node:
        """An axis as those of these letters."""
        if not names:
            return self._call("call_method", "squeeze", y, axis)
        sizes = tuple(self._size(1, c) for c in names)
        return y if len(names) == 1 else self._call("call_method", "unflatten", y, axis, sizes)

    def _size(self, side: int, letter: str) -> int:
        return self.sides[side].meta["shape"][self.terms[side].index(letter)]

    def _call(self, op: str, target: Any, *args: Any) -> Node:
        made = self.node.graph.create_node(op, target, args)
        stands_for(made, self.node)
        return made
