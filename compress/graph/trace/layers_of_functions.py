"""A layer that is written as a function of parameters becomes that layer: `F.conv2d(x, self.weight, ...)` is an nn.Conv2d.

A weight that is computed from parameters alone (standardized, joined, masked) becomes a plain one of the values it has: exact in
eval mode, and `module.meta["plain"]` names the layers. A layer stands where its weight stood, so that names of the state_dict
stay where the parameters are called weight and bias; elsewhere it is named after the parameter.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, Node

from compress.graph.names import submodules
from compress.graph.trace.constants import Constants
from compress.graph.trace.function_kinds import KINDS, Kind
from compress.graph.trace.functional import free_name


def needs_shapes(graph: Graph) -> bool:
    """Whether a layer's class depends on the axes of its input."""
    return any(n.op == "call_function" and n.target in (F.batch_norm, F.group_norm, F.instance_norm) for n in graph.nodes)


def layers_for_functions(root: nn.Module, graph: Graph, constants: Constants) -> dict[str, str]:
    """Replace every function of parameters by a layer.

    Args:
        root: holds the parameters; gets the layers.
        graph: is changed.
        constants: of this graph.

    Returns:
        Path of each layer whose weight was computed -> `file.py:line` of the call.
    """
    taken = {name for name, _ in submodules(root)}
    plain: dict[str, str] = {}
    groups: dict[Any, list[_Call]] = {}
    for node in graph.nodes:
        if (call := _Call.of(node, constants)) is not None:
            groups.setdefault(call.key, []).append(call)
    leaves = {str(n.target) for n in graph.nodes if n.op == "call_module"}
    for calls in groups.values():
        source = calls[0].node.meta.get("source", "")
        if _closed(calls, leaves):
            name, computed = _replace(root, calls, taken)
            if computed:
                plain[name] = source
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op != "output" and node.op != "placeholder" and constants.is_known(node):
            graph.erase_node(node)
    return plain


def rows_for_lookups(root: nn.Module, graph: Graph, constants: Constants) -> None:
    """A table that is looked up at places known beforehand, as for positions, becomes the rows found there: `PATH.rows`.

    Args:
        root: holds the tables; gets the rows.
        graph: is changed.
        constants: of this graph.
    """
    calls: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if node.op == "call_module" and type(root.get_submodule(str(node.target))) is nn.Embedding:
            calls.setdefault(str(node.target), []).append(node)
    for path, (node, *more) in calls.items():
        places, m = node.args[0] if node.args else node.kwargs.get("input"), cast(nn.Embedding, root.get_submodule(path))
        if more or m.max_norm is not None or m._forward_hooks or not isinstance(places, Node) or not constants.is_known(places):
            continue
        rows = m.weight.detach()[constants.value(places)]
        m.register_parameter("rows", nn.Parameter(rows, m.weight.requires_grad))
        with graph.inserting_before(node):
            held = graph.create_node("get_attr", f"{path}.rows")
        held.meta = dict(node.meta)
        node.replace_all_uses_with(held)
        graph.erase_node(node)


@dataclass
class _Call:
    """One call of a function: settings, and where its parameters come from."""

    node: Node
    kind: Kind
    given: dict[str, Any]
    sources: dict[str, Node]
    tensors: dict[str, Tensor]

    @property
    def input(self) -> Any:
        """What the layer is called on, as long as the call is there."""
        place = self.kind.arguments.split().index("input")
        return self.node.args[place] if len(self.node.args) > place else self.node.kwargs["input"]

    @property
    def key(self) -> Any:
        return (self.node.target, repr(sorted(self.given.items())), tuple((k, v.name) for k, v in self.sources.items()))

    @staticmethod
    def of(node: Node, constants: Constants) -> _Call | None:
        kind = KINDS.get(node.target) if node.op in ("call_function", "call_method") else None
        if kind is None:
            return None
        words = [w.split("=") for w in kind.arguments.split()]
        names = [w[0] for w in words]
        if len(node.args) > len(names) or not node.kwargs.keys() <= set(names):
            return None
        values = {w[0]: ast.literal_eval(w[1]) for w in words if len(w) == 2}
        values |= dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        sources = {k: values.pop(k) for k in kind.tensors if k in values}
        sources = {k: v for k, v in sources.items() if v is not None}
        x = values.pop("input", None)
        if any(not isinstance(v, Node) or not constants.is_known(v) for v in sources.values()) or not isinstance(x, Node):
            return None
        values = {k: constants.value(v) if isinstance(v, Node) and constants.is_known(v) else v for k, v in values.items()}
        if constants.is_known(x) or any(isinstance(v, Node | Tensor) for v in _flat(values)):
            return None
        tensors = {k: constants.value(v) for k, v in sources.items()}
        if not all(isinstance(t, Tensor) for t in tensors.values()) or not _learned(sources, tensors, kind):
            return None
        if kind.transposed:
            if any(t.ndim != n for t, n in zip(tensors.values(), (2, 1), strict=False)):
                return None
            tensors["weight"] = tensors["weight"].detach().t().contiguous()
        values.pop("cudnn_enable", None)
        return _Call(node, kind, values, sources, tensors)


def _learned(sources: dict[str, Node], tensors: dict[str, Tensor], kind: Kind) -> bool:
    """Whether the weight is a parameter, or computed from one; a fixed kernel is no layer's weight."""
    first = next((key for key in ("weight", "bias") if key in sources), None)
    return first is None or sources[first].op != "get_attr" or isinstance(tensors[first], nn.Parameter)


def _of_learned(root: nn.Module, source: Node) -> bool:
    """Whether a parameter is among what a weight is computed from."""
    names = [str(node.target).rpartition(".") for node in _behind([source]) if node.op == "get_attr"]
    return any(isinstance(getattr(root.get_submodule(owner), last), nn.Parameter) for owner, _, last in names)


def _flat(values: dict[str, Any]) -> list[Any]:
    return [v for value in values.values() for v in (value if isinstance(value, tuple | list) else (value,))]


def _replace(root: nn.Module, calls: list[_Call], taken: set[str]) -> tuple[str, bool]:
    """Put one layer in the place of calls; its path, and whether a parameter was computed."""
    first = calls[0]
    try:
        layer: Any = first.kind.make(first.given, first.tensors, first.node)
    except Exception:  # what no layer can be made of stays a function
        return "", False
    computed = False
    # A norm with one of weight and bias is made with both: the other one changes nothing, and stays so.
    for key, parameter in layer._parameters.items():
        if parameter is not None and key not in first.tensors:
            layer._parameters[key] = nn.Parameter(torch.full(parameter.shape, float(key == "weight")), requires_grad=False)
    for key, tensor in first.tensors.items():
        buffer = key in first.kind.buffers
        computed = computed or not (buffer or isinstance(tensor, nn.Parameter))
        if buffer:
            layer._buffers[key] = tensor.detach() if not isinstance(tensor, nn.Parameter) else tensor.data
        else:
            fixed = not _of_learned(root, first.sources[key])  # of buffers, which no training may learn
            made = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach().clone(), requires_grad=not fixed)
            layer._parameters[key] = made
    if layer._buffers.get("num_batches_tracked") is not None:
        layer._buffers["num_batches_tracked"] = torch.zeros((), dtype=torch.long)
    name = _place(root, calls, layer.eval(), taken)
    for call in calls:
        with call.node.graph.inserting_before(call.node):
            made = call.node.graph.call_module(name, (call.input,))
        made.meta = dict(call.node.meta)
        call.node.replace_all_uses_with(made)
        call.node.graph.erase_node(call.node)
    return name, computed


def _place(root: nn.Module, calls: list[_Call], layer: nn.Module, taken: set[str]) -> str:
    """Where the weight's owner was, if the owner is nothing else; otherwise in the place of the parameter, or beside it."""
    call = calls[0]
    owner, _, attribute = _parameter(root, call).rpartition(".")
    holder = root.get_submodule(owner)
    if owner and attribute == "weight" and _gives_way(root, calls, owner):
        above, _, last = owner.rpartition(".")
        for name, child in holder.named_modules():
            if name:
                _move(root, call.node.graph, f"{owner}.{name}", child, taken)
        root.get_submodule(above)._modules[last] = layer
        return owner
    word = attribute.removesuffix("weight").rstrip("_.") or getattr(call.node.target, "__name__", "layer")
    if attribute in holder._parameters and word == attribute and _alone(calls, f"{owner}.{attribute}".lstrip(".")):
        del holder._parameters[attribute]
    name = free_name(f"{owner}.{word}" if owner else word, root, taken)
    holder.add_module(name.rpartition(".")[2], layer)
    return name


def _parameter(root: nn.Module, call: _Call) -> str:
    """The largest parameter behind the weight or the bias, the first of equals; the node's own name where there is none."""
    behind = _behind([call.sources[key] for key in ("weight", "bias") if key in call.sources][:1])
    paths = [str(n.target) for n in call.node.graph.nodes if n.op == "get_attr" and n in behind]
    sizes = {path: getattr(root.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]).numel() for path in paths}
    return max(paths, key=sizes.__getitem__, default=call.node.name)


def _closed(calls: list[_Call], leaves: set[str]) -> bool:
    """Whether these calls are all that uses their parameters: one that others use, too, would be two afterwards.

    Parts that are cut from one parameter, as weights of queries, keys and values, are no such use.
    """
    behind = _behind([source for call in calls for source in call.sources.values()])
    mine = behind | {call.node for call in calls}
    held = {str(n.target).rpartition(".")[0] for n in behind if n.op == "get_attr"}
    return not held & leaves and all(set(n.users) <= mine or all(_cuts(user) for user in n.users) for n in behind)


def _alone(calls: list[_Call], parameter: str) -> bool:
    """Whether nothing else uses a parameter that these calls use."""
    behind = _behind([source for call in calls for source in call.sources.values()])
    mine = behind | {call.node for call in calls}
    return all(set(n.users) <= mine for n in behind if n.op != "get_attr" or n.target == parameter)


def _cuts(node: Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in ("getitem", "chunk", "split", "unbind", "narrow", "tensor_split")


def _gives_way(root: nn.Module, calls: list[_Call], owner: str) -> bool:
    """Whether a module is no more than the parameters of these calls, and layers without weights that can go elsewhere."""
    behind = _behind([source for call in calls for source in call.sources.values()])
    mine = behind | {call.node for call in calls}
    for node in calls[0].node.graph.nodes:
        path = str(node.target)
        if node.op == "call_module" and path.startswith(f"{owner}.") and root.get_submodule(path).state_dict():
            return False
        if node.op == "get_attr" and path.startswith(f"{owner}.") and not (node in behind and set(node.users) <= mine):
            return False
    return True


def _behind(nodes: list[Node]) -> set[Node]:
    """All nodes that these depend on, themselves included."""
    found: set[Node] = set()
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node not in found and not _tells_size(node):
            found.add(node)
            waiting.extend(node.all_input_nodes)
    return found


def _tells_size(node: Node) -> bool:
    """Whether a node reads the sizes of a tensor, of which its entries are no part."""
    return (node.target is getattr and node.args[1] in ("shape", "ndim")) or (node.op == "call_method" and node.target == "size")


def _move(root: nn.Module, graph: Graph, path: str, child: nn.Module, taken: set[str]) -> None:
    """Give a layer without weights a name beside the one that is replaced."""
    nodes = [n for n in graph.nodes if n.op == "call_module" and n.target == path]
    if nodes:
        name = free_name(path.replace(".", "_"), root, taken)
        root.add_module(name, child)
        for node in nodes:
            node.target = name
