"""Smaller layers go back into the model that the traced part was taken from, whose own code goes on calling them.

A graph knows its layers by the names that they have in that model. So every tensor, and every count of channels, goes to the
layer of the same name. Where the code of a submodule counts channels itself (`x.chunk(2, 1)`, of which unequal
shares stay), the graph of that submodule takes its place.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from compress.errors import UnsupportedModel


def put_back(whole: nn.Module, dense: GraphModule, small: GraphModule) -> nn.Module:
    """A copy of `whole` with the layers of `small`.

    Args:
        whole: the model; in it the layers of the graphs have their names.
        dense: what was traced.
        small: the same after channels were removed.

    Raises:
        UnsupportedModel: code of the model itself counts channels that have gone.
    """
    made = copy.deepcopy(whole)
    for path in dict.fromkeys(name.rpartition(".")[0] for name in small.state_dict(keep_vars=True)):
        if path and (layer := _at(made, path)) is not None:
            _layer(made, path, layer, dense, small)
    for owner in sorted(_owners(made, dense, small), reverse=True):
        _set(made, owner, _rewritten(made.get_submodule(owner), owner, small))
    return made


def _layer(made: nn.Module, path: str, layer: nn.Module, dense: GraphModule, small: GraphModule) -> None:
    before, after = dense.get_submodule(path), small.get_submodule(path)
    if type(before) is not type(after):  # a norm that counts what has gone as zeros
        _set(made, path, copy.deepcopy(after).train(layer.training))
        return
    for name, value in after._parameters.items():
        if value is not None:
            _tensor(layer, name, value)
    for name, value in after._buffers.items():
        if value is not None:
            _tensor(layer, name, value)
    for name, value in vars(after).items():
        counts = isinstance(value, int | tuple) and not isinstance(value, bool)
        if counts and name in vars(layer) and vars(before).get(name) != value:
            setattr(layer, name, value)


def _tensor(layer: nn.Module, name: str, value: Tensor) -> None:
    """In the kind that it has there: a frozen norm keeps buffers what a batch norm has as weights."""
    old = layer._buffers.get(name)
    if name in layer._buffers:
        layer._buffers[name] = value.detach().clone().to(old if old is not None else value)
    elif name in layer._parameters:
        there = layer._parameters[name]
        beside = there if there is not None else next(layer.parameters())
        new = value.detach().clone().to(beside)
        layer._parameters[name] = nn.Parameter(new, requires_grad=beside.requires_grad)


def _owners(made: nn.Module, dense: GraphModule, small: GraphModule) -> set[str]:
    """The innermost submodules whose code counts on channels that have gone, and that take and give one tensor."""
    before = {node.name: node for node in dense.graph.nodes}
    found: set[str] = set()
    for node in small.graph.nodes:
        old = before.get(node.name)
        if old is not None and (old.target, str(old.args), str(old.kwargs)) == (node.target, str(node.args), str(node.kwargs)):
            continue
        owner = str(node.meta.get("module", ""))
        while owner and (_at(made, owner) is None or not _one_to_one(small, owner)):
            owner = owner.rpartition(".")[0]
        if not owner:
            raise UnsupportedModel(
                f"The model's own code counts channels that have gone ({node.name}, {node.meta.get('source') or 'a forward'}); "
                "needed is a submodule around it that takes one tensor and gives one. Move those lines into one."
            )
        found.add(owner)
    return {owner for owner in found if not any(owner.startswith(f"{other}.") for other in found)}


def _stretch(small: GraphModule, owner: str) -> list[Node]:
    """The nodes of a submodule: what it calls stands together, in the order of the graph."""
    nodes = list(small.graph.nodes)
    own = [i for i, node in enumerate(nodes) if f"{node.meta.get('module', '')}.".startswith(f"{owner}.")]
    return nodes[own[0] : own[-1] + 1] if own else []


def _ends(small: GraphModule, owner: str) -> tuple[list[Node], list[Node]]:
    """What a submodule reads from outside, and what is read of it."""
    within = _stretch(small, owner)
    inside = set(within)
    takes = dict.fromkeys(n for node in within for n in node.all_input_nodes if n not in inside and n.op != "get_attr")
    gives = [node for node in within if any(user not in inside for user in node.users)]
    return list(takes), gives


def _one_to_one(small: GraphModule, owner: str) -> bool:
    takes, gives = _ends(small, owner)
    return len(takes) == len(gives) == 1


def _rewritten(old: nn.Module, owner: str, small: GraphModule) -> GraphModule:
    """The graph of one submodule, which calls the layers that are there already."""
    (takes,), (gives,) = _ends(small, owner)
    graph = Graph()
    known = {takes: graph.placeholder("x")}

    def copied(node: Node) -> Node:
        # What is read from outside without being computed, a constant of the graph, comes along.
        return known[node] if node in known else known.setdefault(node, graph.node_copy(node, copied))

    for node in _stretch(small, owner):
        copied(node)
    graph.output(known[gives])
    parts: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            name = str(node.target)
            node.target = name.removeprefix(f"{owner}.")
            own = _value(old, node.target) if node.target != name else None
            parts[node.target] = own if own is not None else copy.deepcopy(_value(small, name))
    made = GraphModule(parts, graph, type(old).__name__)
    kept = {name: value for name, value in _attributes(old) if not hasattr(made, name)}
    for name, value in kept.items():
        setattr(made, name, value)
    made.meta["_user_preserved_attributes"] = kept  # torch.fx makes copies of a graph anew, with these attributes alone
    made.train(old.training)
    return made


def _attributes(old: nn.Module) -> Iterator[tuple[str, Any]]:
    """What the code around a submodule may read of it."""
    return ((name, value) for name, value in vars(old).items() if not name.startswith("_") and name != "training")


def _value(root: nn.Module, name: str) -> Any:
    found: Any = root
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _at(root: nn.Module, path: str) -> nn.Module | None:
    found = _value(root, path)
    return found if isinstance(found, nn.Module) else None


def _set(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, last = path.rpartition(".")
    setattr(root.get_submodule(parent), last, module)
