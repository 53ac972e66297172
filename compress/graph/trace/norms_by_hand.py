"""A layer norm that is written out becomes F.layer_norm, along whatever axis it runs (ConvNeXt's runs along that of channels).

    u = x.mean(1, keepdim=True);  s = (x - u).pow(2).mean(1, keepdim=True);  y = (x - u) / sqrt(s + eps)

Only where y is multiplied by a parameter with an entry for each place of the axis, which tells that these are channels: a norm
over time or space goes on for inputs of other sizes as it stands.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from compress.graph.trace.lines import stands_for

_ROOTS = {torch.sqrt: 1, "sqrt": 1, torch.rsqrt: -1, "rsqrt": -1}
_POWERS = frozenset({operator.pow, torch.pow, "pow", "__pow__"})
_DIVIDED = frozenset({operator.truediv, torch.div, torch.true_divide, "div", "true_divide"})
_TIMES = frozenset({operator.mul, torch.mul, "mul"})
_LESS = frozenset({operator.sub, torch.sub, "sub"})
_MORE = frozenset({operator.add, torch.add, "add"})
_MEANS = frozenset({torch.mean, "mean"})
_SQUARES = frozenset({torch.square, "square"})
_VARIANCES = frozenset({torch.var, "var"})


@dataclass(frozen=True)
class Norm:
    """A norm that is written out: what gives it, of what, along which axis."""

    node: Node
    x: Node
    axis: int
    eps: float


def found(graph: Graph) -> list[Norm]:
    """Every such norm, whatever it is multiplied with."""
    return [norm for node in graph.nodes if (norm := _norm(node)) is not None]


def write_layers(graph: Graph, norms: list[Norm]) -> None:
    """Replace those whose axis has channels, in place; the nodes know their shapes."""
    for norm in norms:
        shape = norm.node.meta["shape"]
        axis = norm.axis % len(shape)
        if shape != norm.x.meta["shape"] or not any(_scales(user, norm.node, shape[axis]) for user in norm.node.users):
            continue
        last = axis == len(shape) - 1
        with graph.inserting_before(norm.node):
            x = norm.x if last else graph.call_method("movedim", (norm.x, axis, -1))
            y = made = graph.call_function(F.layer_norm, (x, (shape[axis],), None, None, norm.eps))
            if not last:
                made = graph.call_method("movedim", (y, -1, axis))
        moved = (*shape[:axis], *shape[axis + 1 :], shape[axis])
        for one in {x, y, made} - {norm.x}:
            stands_for(one, norm.node)
            one.meta["shape"], one.meta["boolean"] = moved, False
        made.meta["shape"] = shape
        norm.node.replace_all_uses_with(made)
        _erase(graph, norm.node)


def _erase(graph: Graph, node: Node) -> None:
    """Erase a node that nobody uses, and what only it used."""
    waiting, erased = [node], set[Node]()
    while waiting:
        one = waiting.pop()
        if not one.users and one not in erased and one.op in ("call_function", "call_method"):
            waiting += one.all_input_nodes
            graph.erase_node(one)
            erased.add(one)


def _scales(user: Node, y: Node, channels: int) -> bool:
    others = [one for one in user.all_input_nodes if one is not y]
    return user.target in _TIMES and len(others) == 1 and _of_parameter(others[0], channels)


def _of_parameter(node: Node, entries: int) -> bool:
    shape = node.meta.get("shape")
    while node.op in ("call_function", "call_method") and len(node.all_input_nodes) == 1:
        node = node.all_input_nodes[0]
    return node.op == "get_attr" and bool(shape) and max(shape) == entries and all(n in (1, entries) for n in shape)


def _norm(node: Node) -> Norm | None:
    """(x - u) / sqrt(s + eps), or times 1 / sqrt(s + eps)."""
    pair = [one for one in node.args if isinstance(one, Node)]
    if len(pair) != 2 or len(node.args) != 2 or node.kwargs:
        return None
    orders = [(pair[0], pair[1], 1)] if node.target in _DIVIDED else []
    orders += [(pair[0], pair[1], -1), (pair[1], pair[0], -1)] if node.target in _TIMES else []
    for centered, root, sign in orders:
        inside = _under_root(root, sign)
        center = _centered(centered)
        if inside is None or center is None:
            continue
        s, eps = inside
        x, axis = center
        if _variance(s, centered, x, axis):
            return Norm(node, x, axis, eps)
    return None


def _under_root(node: Node, sign: int) -> tuple[Node, float] | None:
    power = node.args[1] if node.target in _POWERS and len(node.args) == 2 else None
    if not (_ROOTS.get(node.target) == sign or power == 0.5 * sign) or not isinstance(node.args[0], Node):
        return None
    total = node.args[0]
    if total.target not in _MORE or len(total.args) != 2 or not isinstance(total.args[1], float):
        return None
    s = total.args[0]
    return (s, total.args[1]) if isinstance(s, Node) else None


def _centered(node: Node) -> tuple[Node, int] | None:
    """What a mean is taken away from, and the axis of it."""
    if node.target not in _LESS or len(node.args) != 2 or node.kwargs:
        return None
    x, mean = node.args
    if not isinstance(x, Node) or not isinstance(mean, Node) or mean.target not in _MEANS or mean.args[:1] != (x,):
        return None
    axis = _axis(mean)
    return None if axis is None else (x, axis)


def _axis(node: Node) -> int | None:
    """The single axis that a statistic runs along and keeps; None for anything else."""
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis"))
    kept = node.args[2] if len(node.args) > 2 and node.target in _MEANS else node.kwargs.get("keepdim")
    if isinstance(dims, tuple | list) and len(dims) == 1:
        dims = dims[0]
    return dims if type(dims) is int and kept is True else None


def _variance(s: Node, centered: Node, x: Node, axis: int) -> bool:
    if _axis(s) != axis or not s.args:
        return False
    if s.target in _VARIANCES:
        plain: bool = s.kwargs.get("unbiased") is False or s.kwargs.get("correction", 1) in (0, 0.0)
        return s.args[0] is x and plain and len(s.args) <= 2
    if s.target not in _MEANS or not isinstance(s.args[0], Node):
        return False
    square = s.args[0]
    twice = square.target in _TIMES and len(square.args) == 2 and square.args[0] is square.args[1]
    power = square.target in _POWERS and len(square.args) == 2 and square.args[1] == 2
    of: Any = square.args[0] if square.target in _SQUARES or twice or power else None
    return isinstance(of, Node) and (of is centered or _centered(of) == (x, axis))
