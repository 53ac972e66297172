"""A segment of a model cut out as a model of its own: what is timed where the whole would be too slow to time for each choice."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node


def piece(module: GraphModule, names: Collection[str]) -> tuple[GraphModule, tuple[Tensor, ...]]:
    """The named layers, and everything that lies between them.

    Args:
        module: traced model whose shapes are noted.
        names: module paths, and names of nodes that are no modules, such as sums.

    Returns:
        The piece, which shares its layers with the model and whose names are the same, and inputs of the shapes that it
        gets in the model, filled with zeros.

    Raises:
        ValueError: no node has one of the names, or more than one value leaves the piece.
    """
    named = [n for n in module.graph.nodes if (n.op == "call_module" and str(n.target) in names) or n.name in names]
    if len(named) < len(set(names)):
        raise ValueError(f"the model has not all of {sorted(names)}")
    inside = _from_one_value(module.graph.nodes, set(_between(module.graph.nodes, set(named))))
    leaving = [n for n in inside if any(user not in inside for user in n.users)]
    # More than one value could not be timed as one layer.
    if len(leaving) != 1:
        raise ValueError(f"{len(leaving)} values leave the piece {sorted(names)}, needed is one")
    graph, copied = Graph(), dict[Node, Node]()
    entries = list(dict.fromkeys(source for node in inside for source in node.all_input_nodes if source not in inside))
    for entry in entries:
        copied[entry] = graph.placeholder(entry.name)
    for node in inside:
        copied[node] = graph.node_copy(node, lambda n: copied[n])
    graph.output(copied[leaving[0]])
    cut = GraphModule(module, graph).eval()
    return cut, tuple(torch.zeros(entry.meta["shape"]) for entry in entries)


def _between(nodes: Iterable[Node], named: set[Node]) -> list[Node]:
    """The named nodes, and those that lie behind one of them and in front of another, in the order of the graph."""
    order = list(nodes)
    behind, before = set(named), set(named)
    for node in order:
        if any(source in behind for source in node.all_input_nodes):
            behind.add(node)
    for node in reversed(order):
        if any(user in before for user in node.users):
            before.add(node)
    return [node for node in order if node in behind and node in before]


def _from_one_value(nodes: Iterable[Node], inside: set[Node]) -> list[Node]:
    """The piece with what leads to it from the one value that all of it is computed from.

    Norms in front of the first layers, and the nameless module of a skip connection, have no names in a plan.
    """
    places = {node: place for place, node in enumerate(nodes)}
    while len(entries := {source for node in inside for source in node.all_input_nodes} - inside) > 1:
        latest = max(entries, key=lambda node: places[node])
        if latest.op == "placeholder":
            break
        inside = inside | {latest}
    return [node for node in places if node in inside]
