"""Branches and numbers that depend on sizes are settled while tracing; those that depend on data are not.

`if h % 2: x = F.pad(x, ...)` has one answer for inputs of one size. It is found by running what leads to the condition on tensors
without data (the meta device), for two batch sizes: whatever needs a value, or differs between batches, has no answer.
"""

from __future__ import annotations

import dis
import functools
import itertools
import linecache
import sys
from collections.abc import Iterable, Iterator
from types import CodeType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Node, Proxy
from torch.fx.node import map_arg
from torch.fx.proxy import Attribute

from compress.graph.trace.lines import their_file
from compress.graph.trace.shapes import bare, run_bare


class Branches:
    """Answers for one trace. Remembers what it has computed, since conditions come one after another along a graph."""

    def __init__(self, root: nn.Module, inputs: tuple[Tensor, ...]):
        self.root, self.inputs = root, inputs
        # Without it, running a submodule for an answer would trace that submodule into the graph.
        self.busy = False  # while it is, modules are to be run and not traced
        self._known: tuple[dict[Node, Any], ...] = ({}, {})  # values at the batch size of the example, and at one more

    def number(self, node: Node) -> bool | int | float | None:
        """The value of a condition or a number; None where it depends on data or on the batch."""
        one, other = self.values(node)
        return one if isinstance(one, bool | int | float) and one == other else None

    def length(self, node: Node) -> int | None:
        """How many parts a shape, a list or a tensor has; None where that depends on data or on the batch."""
        one, other = self.values(node)
        parts = [len(v) for v in (one, other) if isinstance(v, tuple | list) or (isinstance(v, Tensor) and v.ndim)]
        return parts[0] if len(parts) == 2 and parts[0] == parts[1] else None

    def values(self, node: Node) -> tuple[Any, Any]:
        """What a node gives for two batch sizes, tensors without entries; (None, None) where that depends on data."""
        nodes = _leading_to(node)
        self.busy = True
        try:
            with torch.no_grad():
                # Made of parameters alone: their values are fixed at load, so the real ones may decide.
                if not any(n.op == "placeholder" for n in nodes):
                    value = _run(nodes, {}, self.root, self.inputs, None)
                    value = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
                    return value, value
                with torch.device("meta"):
                    # Two batch sizes: an answer that differs between them would bake the example's batch into the graph.
                    one, other = [_run(nodes, known, self.root, self.inputs, more) for more, known in enumerate(self._known)]
                    return one, other
        except Exception:  # an operation that needs data, or does not run without any
            return None, None
        finally:
            self.busy = False


class Number(Proxy):
    """A traced value that becomes a plain number where plain Python asks for one (`int(h / 2)`, `range(n)`) and sizes tell it."""

    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """To an `isinstance` in a forward, what the value will be; to everybody else, what this is."""
        frame = sys._getframe(1)
        if not asks_for_type(frame.f_code, frame.f_lasti):
            return Number
        one, _ = cast(Any, self.tracer).branches.values(self.node)
        return type(one) if isinstance(one, tuple | list | dict | bool | int | float | torch.dtype | torch.device) else Tensor

    # range(n) and slicing ask for __index__, int(...) for __int__, math.sqrt and friends for __float__.
    def __index__(self) -> int:
        return int(self._number())

    def __int__(self) -> int:
        return int(self._number())

    def __float__(self) -> float:
        return float(self._number())

    def __getattr__(self, k: str) -> _Part:
        return _Part(self, k)

    def __iter__(self) -> Iterator[Proxy]:
        """`a, b = x` has two parts, else sizes tell. As in torch.fx, which reads all of the caller each time."""
        frame = sys._getframe(1)
        parts = unpacked(frame.f_code, frame.f_lasti)
        return self.tracer.iter(self) if parts is None else iter([cast(Any, self)[i] for i in range(parts)])

    def __len__(self) -> int:
        found: int | None = cast(Any, self.tracer).branches.length(self.node)
        if found is None:
            raise cast(Any, self.tracer).refusal("a length that depends on data or on the batch is asked for while tracing")
        return found

    def _number(self) -> float:
        found: float | None = cast(Any, self.tracer).branches.number(self.node)
        if found is None:
            raise cast(Any, self.tracer).refusal("a number that depends on data or on the batch is asked for while tracing")
        return found


class _Part(Number, Attribute):
    """An attribute of a traced value (`x.shape`); a node of the graph once it is not called."""


@functools.cache
def unpacked(code: CodeType, instruction: int) -> int | None:
    """Into how many names an instruction takes a value apart; None where it does something else."""
    here = next((i for i in dis.get_instructions(code) if i.offset >= instruction), None)
    return here.arg if here is not None and here.opname == "UNPACK_SEQUENCE" else None


@functools.cache
def asks_for_type(code: CodeType, instruction: int) -> bool:
    """Whether an instruction of the user's code, or of torch.is_tensor, calls isinstance."""
    if code is torch.is_tensor.__code__:
        return True
    if "isinstance" not in code.co_names or not their_file(code.co_filename):
        return False
    line, _, column, _ = next(itertools.islice(code.co_positions(), instruction // 2, None), (None,) * 4)
    if line is None or column is None:
        return False
    return linecache.getline(code.co_filename, line).encode()[column:].startswith(b"isinstance(")


def _leading_to(condition: Node) -> list[Node]:
    found: set[Node] = set()
    waiting = [condition]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    # In the order of the graph, which is topological; the search above found them backwards.
    return [node for node in condition.graph.nodes if node in found]


def _run(nodes: Iterable[Node], known: dict[Node, Any], root: nn.Module, inputs: tuple[Tensor, ...], more: int | None) -> Any:
    """The value of the last node. `more` images than in the example, without data; None: on the model's real tensors."""
    value: Any = None
    given = iter(inputs)
    for node in nodes:
        if node.op == "placeholder":
            example = next(given)
            known.setdefault(node, torch.empty(len(example) + (more or 0), *example.shape[1:], dtype=example.dtype))
        elif node not in known:
            known[node] = _step(node, known, root, more is not None)
        value = known[node]
    return value


def _step(node: Node, known: dict[Node, Any], root: nn.Module, meta: bool) -> Any:
    target: Any = node.target
    args, kwargs = map_arg(node.args, known.__getitem__), map_arg(node.kwargs, known.__getitem__)
    if node.op == "get_attr":
        owner, _, name = target.rpartition(".")
        value = getattr(root.get_submodule(owner), name)
        return bare(value) if meta else value
    if node.op == "call_function":
        return target(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    m = root.get_submodule(target)
    return run_bare(m, args, kwargs) if meta else m(*args, **kwargs)
