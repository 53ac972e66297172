"""Sizes are computed by Python, whose numbers and sequences have no end: what they can become is looked at before each step.

A stranger's graph may square a size sixty times, or do that for some sizes only. So beside the values of one run stands how many
bits each number and each sequence can have whatever the sizes are: 64 for what is asked of a tensor, the sum of both for a sum
or a product, and as often as it says for a power.
"""

from __future__ import annotations

import math
import operator
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from compress.errors import BadInput

_SIZE = 64  # bits of what a tensor tells of itself
_MOST = 2**20  # bits; sums of all sizes of a network take some thousand
_POWERS = (operator.pow, operator.ipow)
_PRODUCTS = (operator.mul, operator.imul)
_SUMMED = frozenset({operator.add, operator.iadd, operator.sub, operator.isub, *_PRODUCTS, *_POWERS, math.prod, math.pow})


class Endless:
    """What the numbers of one run of a graph can become; asked before every function, told every value."""

    def __init__(self) -> None:
        self._bits: dict[Node, int] = {}

    def refuse(self, node: Node, args: tuple[Any, ...]) -> None:
        """Look before a function is called.

        Args:
            node: of its call.
            args: values of its arguments.

        Raises:
            BadInput: it repeats or writes out a sequence, or makes a number that no size is.
        """
        if node.op != "call_function" or not any(isinstance(a, int | str | list | tuple) for a in args):
            return
        target, plain = node.target, not any(isinstance(a, Tensor) for a in args)
        repeats = target in (*_PRODUCTS, operator.mod) and any(isinstance(a, str | list | tuple) for a in args)
        power = target in _POWERS and plain and not all(isinstance(n, int | float) and abs(n) <= 64 for n in node.args[1:])
        large = any(isinstance(n, int) and abs(n) >= 2**63 for n in args)
        if repeats or power or large or (plain and self._after(node) > _MOST):
            raise BadInput(
                f"The model computes '{node.name}' of numbers that are no sizes. Take the model from a source you trust."
            )

    def told(self, node: Node, value: Any) -> None:
        """What a node's value is: of tensors there is an end."""
        if not isinstance(value, Tensor) and isinstance(value, int | list | tuple):
            self._bits[node] = max(self._after(node), _SIZE * (1 if isinstance(value, int) else len(value)))

    def _after(self, node: Node) -> int:
        """Bits of a function's value."""
        if node.op != "call_function":
            return 0
        most = sum(_SIZE if isinstance(a, int) else self._bits.get(a, 0) for a in tree_leaves(node.args) if _counts(a))
        if node.target in _POWERS and isinstance(times := node.args[-1], int | float):
            most *= max(1, math.ceil(abs(times)))
        return most if node.target in _SUMMED or node.target is operator.getitem else min(most, _MOST)


def _counts(value: Any) -> bool:
    return isinstance(value, int | Node)
