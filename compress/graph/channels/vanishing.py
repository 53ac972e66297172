"""Is an activation zero in channels whose makers are zero?

Where a norm takes its statistics over channels, those that go count as zeros (`partial_norm`). That is what happens to them if
every weight that makes them is zero, and nothing on the way makes something of zeros, as a sigmoid would.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from compress.graph import operations
from compress.graph.channels.atom_state import State
from compress.graph.channels.atoms import slim
from compress.graph.trace.shapes import holds_tensor

_TIMES = frozenset({operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "mul_", "multiply", "__mul__"})
_OVER = frozenset({operator.truediv, operator.itruediv, torch.div, torch.true_divide, "div", "div_", "true_divide"})
_SUMS = frozenset({"sum", "mean", "norm", "vector_norm", "amax", "amin"})
_MOVES = operations.MOVEMENT | operations.SIZED | operations.JOINS | operations.PIXELS | operations.POOLING
_MOVES |= (
    operations.FOURIER
    | operations.COMPLEX
    | operations.PRODUCTS
    | {operator.getitem, torch.unbind, torch.roll, torch.repeat_interleave, F.normalize}
)
_MOVE_METHODS = (
    operations.MOVEMENT_METHODS
    | operations.SIZED_METHODS
    | operations.CASTS
    | operations.PRODUCT_METHODS
    | {"unbind", "roll", "repeat_interleave"}
)
_MOVING_LAYERS = operations.POOLS | operations.PIXEL_SHUFFLES | {nn.Flatten, nn.ChannelShuffle}


def freeze_what_does_not_vanish(s: State, module: GraphModule, classes: Tensor) -> None:
    """Freeze the channels of norms that would not be zero; `s.zeroed` keeps the others."""
    if not s.zeroed:
        return
    known: dict[frozenset[int], _Vanishing] = {}
    written = _written(s, module)
    makers = _Makers(s, classes.numpy())
    kept: list[tuple[Tensor, Node, str]] = []
    for atoms, source, reason in s.zeroed:
        gone = frozenset(torch.unique(classes[slim(atoms)]).tolist())
        if gone not in known:  # one stream has many norms
            known[gone] = _Vanishing(s, module, written, *makers.of(gone))
        if known[gone].at(source):
            kept.append((atoms, source, reason))
        else:
            s.atoms.freeze(atoms, reason)
    s.zeroed = kept


class _Makers:
    """Which tensors make channels of which classes."""

    def __init__(self, s: State, classes: npt.NDArray[np.int64]):
        self.labels = len(classes)
        vectors: dict[int, npt.NDArray[np.int64]] = {}
        self.names: dict[int, list[tuple[str, bool]]] = {}  # the axes of a layer share a tensor of atoms
        for (name, dim), (role, atoms) in s.axes.items():
            both = (name, dim) in s.both
            if role != "in" or both:
                if id(atoms) not in vectors:
                    vectors[id(atoms)] = classes[atoms.numpy()]
                self.names.setdefault(id(atoms), []).append((name, both))
        self.classes = np.concatenate([np.zeros(0, np.int64), *vectors.values()])
        self.vectors = np.repeat(np.array(list(vectors), np.int64), [len(v) for v in vectors.values()])

    def of(self, gone: frozenset[int]) -> tuple[set[str], set[str]]:
        """Names of what makes any of these, and of tables among them that another layer reads channels by."""
        goes = np.zeros(self.labels, dtype=bool)
        goes[list(gone)] = True
        touched = [one for i in np.unique(self.vectors[goes[self.classes]]).tolist() for one in self.names[i]]
        return {name for name, both in touched if not both}, {name for name, both in touched if both}


class _Vanishing:
    """Answers for channels that `made` and `tables` make."""

    def __init__(
        self, s: State, module: GraphModule, written: Mapping[Node, list[Node | None]], made: set[str], tables: set[str]
    ):
        self.s, self.module, self.written, self.made, self.tables = s, module, written, made, tables
        self.answers: dict[Node, bool] = {}

    def at(self, node: Node) -> bool:
        """Whether what a node gives is zero."""
        waiting = [node]
        while waiting:
            last = waiting[-1]
            answer = self.answers.get(last, self._at_once(last))
            also = self.written.get(last, [])
            if None in also:
                answer = False
            needed = [] if answer is not None else _tensors(last)
            needed = [*needed, *(source for source in also if answer is not False and source is not None)]
            missing = [source for source in needed if source not in self.answers]
            if missing:
                waiting += missing
                continue
            zero = self._of_inputs(last) if answer is None else answer
            self.answers[waiting.pop()] = zero and all(self.answers[source] for source in also if source is not None)
        return self.answers[node]

    def _at_once(self, node: Node) -> bool | None:
        """The answer that needs no other; None where there is none."""
        if node.op in ("placeholder", "output"):
            return False
        if node.op == "get_attr":
            value: Any = operator.attrgetter(str(node.target))(self.module)
            return self._is_made(str(node.target)) or (isinstance(value, Tensor) and not bool(value.any()))
        if node.op == "call_module":
            path = str(node.target)
            m = self.s.modules[path]
            if type(m) is nn.Embedding and self.s.names[f"{path}.weight"] in self.tables:
                return True
            if type(m) is not nn.PReLU and any(self._is_made(f"{path}.{key}") for key in m._parameters):
                return True
            return None if type(m) in operations.SAME | _MOVING_LAYERS | {nn.PReLU} else False
        return None

    def _is_made(self, name: str) -> bool:
        return self.s.names.get(name, name) in self.made

    def _of_inputs(self, node: Node) -> bool:
        if node.name in self.s.summed:  # the channels that stay are in there, too
            return False
        zero = [self.answers[source] for source in _tensors(node)]
        target: Any = node.target
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        if node.op == "call_module":
            return all(zero) and _gives_zero(self.s.modules[target])
        if target in _TIMES:
            return any(zero)
        if target in _OVER:
            first = node.args[0]
            return isinstance(first, Node) and self.answers[first]
        if target is F.scaled_dot_product_attention:  # a mean of values
            value = node.args[2] if len(node.args) > 2 else node.kwargs["value"]
            return isinstance(value, Node) and self.answers[value]
        if not all(zero):
            return False
        if target is getattr:  # the real part of a complex number, or the axes in another order
            return node.args[1] in ("real", "imag", "T", "mT")
        if target in (_MOVE_METHODS if node.op == "call_method" else _MOVES) or name.removeprefix("linalg_") in _SUMS:
            return True
        if name == "pad":
            return not (node.args[3] if len(node.args) > 3 else node.kwargs.get("value"))
        return target in operations.ELEMENTWISE | operations.ELEMENTWISE_METHODS and _is_zero(target, node.args, node.kwargs)


def _written(s: State, module: GraphModule) -> dict[Node, list[Node | None]]:
    """Nodes into which others write, through views, too -> what is written there; None where that is no zero whatever is."""
    found: dict[Node, list[Node | None]] = {}
    for node in module.graph.nodes:
        name = node.target if isinstance(node.target, str) else ""
        method = node.op == "call_method" and name.endswith("_") and not name.endswith("__")
        if node.op == "call_module" and getattr(m := s.modules[name], "inplace", False) and type(m) in operations.SAME:
            if not _gives_zero(m):
                found.setdefault(node.all_input_nodes[0], []).append(None)
            continue
        if not method and not (node.op == "call_function" and node.target in _INTO):
            continue
        zeros = node.target in _TIMES or (node.target is not operator.setitem and _is_zero(node.target, node.args, node.kwargs))
        x, *others = node.all_input_nodes
        given = [one for one in others if holds_tensor(one.meta["shape"])] if zeros and node.target not in _TIMES else []
        waiting: list[Any] = [x]
        while waiting:
            one = waiting.pop()
            if one.op in ("call_function", "call_method") and (one.target in _MOVES or one.target in _MOVE_METHODS):
                waiting += one.all_input_nodes[:1]
            found.setdefault(one, []).extend(given if zeros else [None])
    return found


_INTO = frozenset({operator.setitem, operator.iadd, operator.isub, operator.imul, operator.itruediv})


def _tensors(node: Node) -> list[Node]:
    """The sources of a node that are no plain numbers."""
    return [source for source in node.all_input_nodes if holds_tensor(source.meta["shape"])]


def _gives_zero(m: Any) -> bool:
    """Whether a layer without weights, or a PReLU, makes zeros of zeros."""
    if type(m) in operations.SAME:
        with torch.no_grad():
            return not bool(m(torch.zeros(1, 1)).any())
    return not getattr(m, "value", 0)  # of constant padding


def _is_zero(target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    def zeros(_: Node) -> Any:
        return torch.zeros(1)

    given, named = map_arg(args, zeros), map_arg(dict(kwargs), zeros)
    try:
        value = target(*given, **named) if callable(target) else getattr(given[0], target)(*given[1:], **named)
    except Exception:  # numbers that were computed from sizes, and whatever else does not go with a zero
        return False
    return isinstance(value, Tensor) and not bool((value != 0).any())
