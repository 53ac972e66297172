"""Arguments of a call as bytes for the other processes of a run. Both ends are the same program: nothing else may read them.

A traced model is sent as its modules and its graph, node by node: torch would send its source code and trace that again, and lose
what the nodes know. Tensors of a GPU arrive on the CPU, since every process has a GPU of its own.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

_NOTED = ("shape", "source", "module")
"""What nodes know that stages ask for."""


@dataclass(frozen=True)
class _Place:
    """A node, in the arguments of another one."""

    name: str


class _Packer(pickle.Pickler):
    def __init__(self, file: io.BytesIO, known: Mapping[int, str]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._known = known

    def persistent_id(self, obj: Any) -> str | None:
        return self._known.get(id(obj))

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, GraphModule):
            return _module, (_parts(obj), [_said(node) for node in obj.graph.nodes], type(obj).__name__)
        if isinstance(obj, nn.Parameter) and obj.device.type != "cpu":
            return nn.Parameter, (obj.detach().cpu(), obj.requires_grad)
        if isinstance(obj, Tensor) and obj.device.type != "cpu":
            return _itself, (obj.detach().cpu(),)
        return NotImplemented


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, known: Mapping[str, object]) -> None:
        super().__init__(file)
        self._known = known

    def persistent_load(self, pid: str) -> object:
        return self._known[pid]


def packed(value: object, known: Mapping[int, str]) -> bytes:
    """As bytes; `known` has the names, by id, of what the others have as well."""
    file = io.BytesIO()
    _Packer(file, known).dump(value)
    return file.getvalue()


def unpacked(data: bytes, known: Mapping[str, object]) -> object:
    """The value again."""
    return _Unpacker(io.BytesIO(data), known).load()


def _itself(value: Any) -> Any:
    return value


def _parts(module: GraphModule) -> dict[str, Any]:
    kept = ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules", "training", "meta")
    return {name: module.__dict__[name] for name in kept if name in module.__dict__}


def _said(node: Node) -> tuple[Any, ...]:
    args, kwargs = (map_arg(value, lambda source: _Place(source.name)) for value in (node.args, node.kwargs))  # type: ignore
    meta = {name: value for name, value in node.meta.items() if name in _NOTED}
    return node.name, node.op, node.target, _plain(args), _plain(kwargs), node.type, meta


def _plain(value: Any) -> Any:
    """Without torch's immutable containers."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, slice):
        return slice(_plain(value.start), _plain(value.stop), _plain(value.step))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_plain, value))
    if isinstance(value, tuple | list):
        return tuple(map(_plain, value)) if isinstance(value, tuple) else [*map(_plain, value)]
    return value


def _module(parts: dict[str, Any], nodes: list[tuple[Any, ...]], name: str) -> GraphModule:
    graph, made = Graph(), dict[str, Node]()
    for known_as, op, target, args, kwargs, kind, meta in nodes:
        node = graph.create_node(op, target, _with(args, made), _with(kwargs, made), known_as, kind)
        node.meta.update(meta)
        made[known_as] = node
    root = nn.Module()
    root.__dict__.update(parts)
    found = GraphModule(root, graph, name)
    found.__dict__.update(parts)  # with what no node reads, in its own order
    return found


def _with(value: Any, made: Mapping[str, Node]) -> Any:
    if isinstance(value, _Place):
        return made[value.name]
    if isinstance(value, dict):
        return {key: _with(inner, made) for key, inner in value.items()}
    if isinstance(value, slice):
        return slice(_with(value.start, made), _with(value.stop, made), _with(value.step, made))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_with(inner, made) for inner in value))
    return type(value)(_with(inner, made) for inner in value) if isinstance(value, tuple | list) else value
