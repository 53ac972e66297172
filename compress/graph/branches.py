"""Branches that depend on sizes are decided while tracing; branches that depend on data are not.

`if h % 2: x = F.pad(x, ...)` has one answer for inputs of one size. It is found by running what leads to the condition on tensors
without data (the meta device), for two batch sizes: whatever needs a value, or differs between batches, has no answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg


class Branches:
    """Answers for one trace. Remembers what it has computed, since conditions come one after another along a graph."""

    def __init__(self, root: nn.Module, inputs: tuple[Tensor, ...]):
        self.root, self.inputs = root, inputs
        self.busy = False  # while it is, modules are to be run and not traced
        self._known: tuple[dict[Node, Any], ...] = ({}, {})

    def decide(self, condition: Node) -> bool | None:
        """The truth of a condition; None where it depends on data or on the batch."""
        nodes = _leading_to(condition)
        self.busy = True
        try:
            with torch.no_grad():
                if not any(node.op == "placeholder" for node in nodes):
                    return bool(_run(nodes, {}, self.root, self.inputs, None))
                with torch.device("meta"):
                    values = [_run(nodes, known, self.root, self.inputs, more) for more, known in enumerate(self._known)]
        except Exception:  # an operation that needs data, or does not run without any
            return None
        finally:
            self.busy = False
        if any(isinstance(value, Tensor) for value in values) or bool(values[0]) != bool(values[1]):
            return None
        return bool(values[0])


def _leading_to(condition: Node) -> list[Node]:
    found: set[Node] = set()
    waiting = [condition]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return [node for node in condition.graph.nodes if node in found]


def _run(nodes: Iterable[Node], known: dict[Node, Any], root: nn.Module, inputs: tuple[Tensor, ...], more: int | None) -> Any:
    """The value of the last node. `more` images than in the example, without data; None: on the model's real tensors."""
    value: Any = None
    given = iter(inputs)
    for node in nodes:
        if node.op == "placeholder":
            example = next(given)
            known.setdefault(node, torch.empty(len(example) + (more or 0), *example.shape[1:]))
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
        return value.to("meta") if meta and isinstance(value, Tensor) else value
    if node.op == "call_function":
        return target(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    m = root.get_submodule(target)
    if not meta:
        return m(*args, **kwargs)
    tensors = {name: t.to("meta") for name, t in (*m.named_parameters(), *m.named_buffers())}
    return torch.func.functional_call(m, tensors, args, kwargs)
