"""Smaller layers go back into the model that the traced part was taken from, whose own code goes on calling them.

A graph knows its layers by the names that they have in that model. So every tensor, and every count of channels, goes to the
layer of the same name. Where the code of a submodule counts channels itself (`x.chunk(2, 1)`, of which unequal
shares stay), the graph of that submodule takes its place.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from compress.errors import UnsupportedModel


def put_back(whole: nn.Module, dense: GraphModule, small: GraphModule, rewriting: bool = True) -> nn.Module:
    """A copy of `whole` with the layers of `small`.

    Args:
        whole: the model; in it the layers of the graphs have their names.
        dense: what was traced.
        small: the same after channels were removed.
        rewriting: put graphs in the place of submodules whose code seems to count channels. Their sizes are those that were
            traced, so that a caller that can compare tries without.

    Raises:
        UnsupportedModel: code of the model itself counts channels that have gone.
    """
    made = copy.deepcopy(whole)
    for path in dict.fromkeys(name.rpartition(".")[0] for name in small.state_dict(keep_vars=True)):
        if path and (layer := _at(made, path)) is not None:
            _layer(made, path, layer, dense, small)
    changed = _changed(dense, small) if rewriting else []
    for owner in sorted(_owners(made, small, changed), reverse=True):
        _set(made, owner, _rewritten(made.get_submodule(owner), owner, small, changed))
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


def _changed(dense: GraphModule, small: GraphModule) -> list[Node]:
    """Calls that are no longer made as they were: of those that count channels, some have gone."""
    before = {node.name: node for node in dense.graph.nodes}
    return [node for node in small.graph.nodes if (old := before.get(node.name)) is None or _call(old) != _call(node)]


def _call(node: Node) -> tuple[Any, str, str]:
    return node.target, str(node.args), str(node.kwargs)


def _owners(made: nn.Module, small: GraphModule, changed: list[Node]) -> set[str]:
    """The innermost submodules whose code counts on channels that have gone, and that take and give one tensor."""
    found: set[str] = set()
    for node in changed:
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


def _rewritten(old: nn.Module, owner: str, small: GraphModule, changed: list[Node]) -> nn.Module:
    """The submodule with the graph in the place of its forward; its layers, its attributes and its hooks are the old ones.

    No longer of its class, whose other methods count channels as well. A GraphModule itself would lose, copied or read from a
    file, what is neither layer nor tensor; a Sequential is torch's own class that every tracer looks into.
    """
    graph, parts = _graph(old, owner, small, changed)
    made = nn.Sequential()
    vars(made).update({name: value for name, value in vars(old).items() if name != "forward"})
    for name, part in parts.items():
        parts[name] = _held(made, name, part)
    _forget(made, parts.keys())
    vars(made)["forward"] = GraphModule(parts, graph, type(old).__name__).forward
    return made


def _held(made: nn.Module, name: str, part: nn.Module | Tensor) -> nn.Module | nn.Parameter:
    """What the graph and the submodule both hold, at its place in the submodule."""
    *path, last = name.split(".")
    for one in path:
        if one not in made._modules:
            made.add_module(one, nn.Module())
        made = made.get_submodule(one)
    if isinstance(part, nn.Module):
        made._modules[last] = part
        return part
    # To another device parameters are moved in place, so that both still hold the same; buffers are not.
    kept = part if isinstance(part, nn.Parameter) else nn.Parameter(part, requires_grad=False)
    made._buffers.pop(last, None)
    made._parameters[last] = kept
    return kept


def _forget(module: nn.Module, used: Collection[str], path: str = "") -> None:
    """Take out what the graph does not use: its channels may be those of before."""
    for name, child in list(module._modules.items()):
        inner = f"{path}{name}"
        if child is not None and inner not in used:
            _forget(child, used, f"{inner}.")
            if not any(one.startswith(f"{inner}.") for one in used):
                del module._modules[name]
    for stored in (module._parameters, module._buffers):
        for name in [one for one in stored if f"{path}{one}" not in used]:
            del stored[name]


def _graph(old: nn.Module, owner: str, small: GraphModule, changed: list[Node]) -> tuple[Graph, dict[str, Any]]:
    """The graph of one submodule, and what it calls and reads by its names there.

    Submodules that go on as they are are called as a whole, so that their own code may be changed later: layers are fused so.
    """
    (takes,), (gives,) = _ends(small, owner)
    graph, parts = Graph(), dict[str, Any]()
    known = {takes: graph.placeholder("x")}
    whole = {gave: (path, took) for path, took, gave in _wholes(old, owner, small, changed)}

    def copied(node: Node) -> Node:
        if node in known:
            return known[node]
        if node in whole:
            path, took = whole[node]
            parts[path] = old.get_submodule(path)
            made = graph.call_module(path, (copied(took),))
        else:
            # What is read from outside without being computed, a constant of the graph, comes along.
            made = graph.node_copy(node, copied)
            if node.op in ("call_module", "get_attr"):
                name = str(node.target)
                inside = name.startswith(f"{owner}.")
                made.target = name.removeprefix(f"{owner}.") if inside else name.replace(".", "_")
                own = _value(old, made.target) if inside else None
                parts[made.target] = own if own is not None else copy.deepcopy(_value(small, name))
                if own is None and node.op == "get_attr":
                    made.op, parts[made.target] = "call_module", _constant(parts[made.target])
        return known.setdefault(node, made)

    within = {node for path, _ in whole.values() for node in _stretch(small, f"{owner}.{path}")} - whole.keys()
    for node in _stretch(small, owner):
        if node not in within:
            copied(node)
    graph.output(known[gives])
    return graph, parts


def _constant(value: Tensor) -> GraphModule:
    """A module that gives a tensor of the graph: a buffer, which no optimizer learns, and which both holders move together."""
    root, graph = nn.Module(), Graph()
    root.register_buffer("value", value.detach())
    graph.output(graph.get_attr("value"))
    return GraphModule(root, graph, "Constant")


def _wholes(old: nn.Module, owner: str, small: GraphModule, changed: list[Node]) -> Iterator[tuple[str, Node, Node]]:
    """The outermost submodules of a submodule that go on as they are, with the one tensor that each takes and gives."""
    counting = [f"{node.meta.get('module', '')}." for node in changed]
    inner = dict.fromkeys(str(node.meta.get("module", "")) for node in _stretch(small, owner))
    tried: dict[str, bool] = {}
    for path in inner:
        names = path.removeprefix(f"{owner}.").split(".") if path.startswith(f"{owner}.") else []
        for i in range(len(names)):
            name = ".".join(names[: i + 1])
            full = f"{owner}.{name}"
            if full not in tried:
                tried[full] = (
                    (there := _at(old, name)) is not None
                    and (
                        "forward" in vars(there) or type(there).forward is not nn.Module.forward
                    )  # a list of layers, which nobody calls
                    and not any(one.startswith(f"{full}.") for one in counting)
                    and _one_to_one(small, full)
                )
                if tried[full]:
                    (took,), (gave,) = _ends(small, full)
                    yield name, took, gave
            if tried[full]:
                break


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
