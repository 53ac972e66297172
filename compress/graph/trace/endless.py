"""Sizes are computed by Python, whose numbers and sequences have no end: what they can become is looked at before each step.

A stranger's graph may square a size sixty times, or do that for some sizes only. So beside the values of one run stands how many
bits each number and each sequence can have whatever the sizes are: 64 for what is asked of a tensor, the sum of both for a sum
or a product, and as often as it says for a power. Texts are no part of it, and neither are tuples of a million tensors.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from compress.errors import BadInput

_AXES = 1000  # entries of what is repeated for each axis
_COUNTED = frozenset({operator.add, operator.sub, operator.mul, operator.floordiv})
_SIZE = 64  # bits of what a tensor tells of itself
_MOST = 2**20  # bits; sums of all sizes of a network take some thousand
_PIECES = 100_000  # tensors that one is taken apart into
_POWERS = (operator.pow, operator.ipow)
_REPEATS = (operator.mul, operator.imul, operator.mod)
_SUMMED = frozenset({operator.add, operator.iadd, operator.sub, operator.isub, *_REPEATS, *_POWERS, math.prod, math.pow})
_APART = frozenset({"unbind", "split", "chunk", "tensor_split", "hsplit", "vsplit", "dsplit", "unsafe_split", "unsafe_chunk"})
_ASKED = frozenset({"__getitem__", "__len__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "__contains__"})
"""What methods of Python's own values give nothing larger."""


class Endless:
    """What the numbers of one run of a graph can become; asked before every function, told every value."""

    def __init__(self) -> None:
        self._bits: dict[Node, int] = {}
        self._ranks: set[Node] = set()

    def refuse(self, node: Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Look before a function or method is called.

        Args:
            node: of its call.
            args: values of its arguments.
            kwargs: those with names.

        Raises:
            BadInput: it repeats or writes out a sequence or a text, or makes a number that no size is.
        """
        if node.op not in ("call_function", "call_method"):
            return
        given = (*args, *kwargs.values())
        if self._grows(node, given) or _pieces(node, given) > _PIECES:
            raise BadInput(
                f"The model computes '{node.name}' of numbers that are no sizes. Take the model from a source you trust."
            )

    def _grows(self, node: Node, given: tuple[Any, ...]) -> bool:
        target, plain = node.target, not any(isinstance(a, Tensor) for a in given)
        if node.op == "call_method":
            return plain and str(target).startswith("__") and target not in _ASKED
        if any(isinstance(a, int) and abs(a) >= 2**63 for a in given):
            return True
        if target not in _SUMMED:
            return False
        if any(isinstance(a, str) for a in tree_leaves(given)):
            return True
        if target is math.prod:
            flat = isinstance(given[0], list | tuple) and all(isinstance(n, int | float) for n in (*given[0], *given[1:]))
            return not flat or self._after(node) > _MOST
        if target in _REPEATS and any(isinstance(a, list | tuple) for a in given):
            return not self._by_rank(node, given)
        if target in _POWERS and plain and not all(isinstance(n, int | float) and abs(n) <= 64 for n in node.args[1:]):
            return True
        return plain and self._after(node) > _MOST

    def _by_rank(self, node: Node, given: tuple[Any, ...]) -> bool:
        """Whether a short sequence stands there as often as a tensor has axes: that is the same for all sizes."""
        lengths: list[int] = [a if isinstance(a, int) else len(a) for a in given if isinstance(a, int | list | tuple)]
        numbers = [n for n, a in zip(node.args, given, strict=False) if isinstance(n, Node) and isinstance(a, int)]
        if node.target is not operator.mul or not len(lengths) == len(given) == 2:
            return False
        return bool(self._ranks.issuperset(numbers) and lengths[0] * lengths[1] <= _AXES)

    def _is_rank(self, node: Node) -> bool:
        """How many axes a tensor has, or what is computed of that alone."""
        if node.op == "call_method":
            return node.target in ("dim", "ndimension")
        if node.target is getattr:
            return bool(node.args[1] == "ndim")
        return node.target in _COUNTED and all(n in self._ranks if isinstance(n, Node) else isinstance(n, int) for n in node.args)

    def told(self, node: Node, value: Any) -> None:
        """What a node's value is: of tensors there is an end."""
        if isinstance(value, int) and self._is_rank(node):
            self._ranks.add(node)
        if not isinstance(value, Tensor) and isinstance(value, int | list | tuple):
            self._bits[node] = max(self._after(node), _SIZE * (1 if isinstance(value, int) else len(value)))

    def _after(self, node: Node) -> int:
        """Bits of a function's value."""
        if node.op != "call_function":
            return 0
        most = sum(map(self._of, (*node.args, *node.kwargs.values())))
        if node.target in _POWERS and isinstance(times := node.args[-1], int | float) and math.isfinite(times):
            most *= max(1, math.ceil(abs(times)))
        return most if node.target in _SUMMED or node.target is operator.getitem else min(most, _MOST)

    def _of(self, given: Any) -> int:
        if isinstance(given, Node):
            return self._bits.get(given, 0)
        if isinstance(given, list | tuple):
            return sum(map(self._of, given))
        return _SIZE if isinstance(given, int) else 0


def _pieces(node: Node, given: tuple[Any, ...]) -> int:
    """Into how many tensors a tensor is taken apart, at most."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    x = given[0] if given else None
    if name not in _APART or not isinstance(x, Tensor) or not x.ndim:
        return 0
    count = next((a for a in given[1:] if isinstance(a, int) and not isinstance(a, bool)), 1)
    if name in ("unbind", "split", "unsafe_split"):
        return max(x.shape) // (1 if name == "unbind" else max(count, 1))
    return min(count, max(x.shape)) if name.endswith("chunk") else count
