"""Weights that the graph computes from parameters: which axis of a parameter is which axis of the weight.

An entry of a weight belongs to a channel that the layer makes and to one that it consumes, so one atom cannot stand for it. What
lies between the parameters and the weight is therefore followed once for each axis of the parameters, with atoms along that axis
alone and one for all along the others. Where the atoms come out along an axis of the weight, the two axes are one.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from compress.graph import operations
from compress.graph.channels.atom_state import Computed, Sized, State, argument, shaped, where
from compress.graph.channels.atoms import along, varying
from compress.graph.trace.shapes import shape_of

_FUNCTIONS = (
    operations.MOVEMENT
    | operations.SIZED
    | operations.JOINS
    | operations.ELEMENTWISE
    | operations.REDUCTIONS
    | {operator.getitem}
)
_METHODS = (
    operations.MOVEMENT_METHODS
    | operations.SIZED_METHODS
    | operations.CASTS
    | operations.ELEMENTWISE_METHODS
    | operations.REDUCTION_METHODS
    | operations.SIZE_METHODS
)
_SCALES = frozenset({operator.mul, operator.imul, operator.truediv, operator.neg, torch.mul, torch.div, "mul", "div", "neg"})
"""Element-wise operations that leave a zero a zero."""


def name(node: Node) -> str:
    """What to call the weight of a layer while its rule runs; no parameter has such a name."""
    return f"<{node.name}>"


def find(graph: Graph, names: Mapping[str, str], takes_whole: Callable[[Node], bool]) -> dict[Node, Computed]:
    """The functional layers whose weight can be followed to parameters that nobody else looks into."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    found: dict[Node, Computed] = {}
    for node in graph.nodes:
        weight = argument(node.args, node.kwargs, 1, "weight") if node.target in _LAYERS else None
        if isinstance(weight, Node) and weight.op != "get_attr" and (behind := _behind(weight)) is not None:
            nodes = tuple(sorted(behind, key=order.__getitem__))
            leaves = {n: names.get(str(n.target), str(n.target)) for n in nodes if n.op == "get_attr"}
            found[node] = Computed(nodes, leaves, all(map(_keeps_zeros, nodes)))
    while True:
        inside = set(found) | {n for one in found.values() for n in one.nodes}
        open_ = [layer for layer, one in found.items() if not _closed(one, inside, takes_whole)]
        if not open_:
            return found
        for layer in open_:
            del found[layer]


_LAYERS = operations.functions("convolution", "linear")


def _behind(weight: Node) -> set[Node] | None:
    """Everything that a weight is computed from; None where that is not parameters alone."""
    seen, waiting = {weight}, [weight]
    while waiting:
        node = waiting.pop()
        sizes = node.target is getattr and node.args[1] in ("shape", "ndim")
        known = node.target in (_METHODS if node.op == "call_method" else _FUNCTIONS) or sizes
        if node.op != "get_attr" and not (known and node.all_input_nodes):
            return None
        fresh = set(node.all_input_nodes) - seen
        seen |= fresh
        waiting += fresh
    # With axes alike the n-th axis means the same in all of them, as far as the operations keep it so.
    shapes = [n.meta["shape"] for n in seen if n.op == "get_attr"]
    return seen if all(shape and len(shape) == len(shapes[0]) > 1 for shape in shapes) else None


def _closed(one: Computed, inside: Iterable[Node], takes_whole: Callable[[Node], bool]) -> bool:
    return all(user in inside or takes_whole(user) for node in one.nodes for user in node.users)


def _keeps_zeros(node: Node) -> bool:
    known = operations.ELEMENTWISE_METHODS if node.op == "call_method" else operations.ELEMENTWISE
    return node.target not in known or node.target in _SCALES or node.meta.get("shape") is None


def follow(s: State, node: Node, one: Computed) -> None:
    """Record the axes of the parameters, whose weight the layer's rule has recorded under `name`."""
    roles = {d: s.axes.pop((name(node), d)) for d in range(2) if (name(node), d) in s.axes}
    sized: dict[str, tuple[Sized, ...]] = {}
    taken = dict(s.taken)
    for axis in range(len(next(iter(one.leaves)).meta["shape"])):
        values = {leaf: _along(s, leaf, tensor, axis) for leaf, tensor in one.leaves.items()}
        own = [t for t in values.values() if t.shape[axis] > 1]
        out = _pushed(s, one, values, sized)
        if out is None:
            for t in (*own, *(atoms for _, atoms in roles.values())):
                s.atoms.freeze(t, f"{where(node)} has weights that are computed")
            continue
        dims = varying(out)
        free = max(dims, key=lambda d, t=out: len(torch.unique(along(t, d))), default=-1)
        if len(dims) > 1:  # parts beside each other, which have this axis in common
            out = s.atoms.unite_along(out, [d for d in dims if d != free])
        if free in roles:
            role, atoms = roles[free]
            s.atoms.unite(along(out, free), atoms)
            for leaf, tensor in one.leaves.items():
                if leaf.meta["shape"][axis] > 1:
                    s.axis(tensor, axis, role, along(values[leaf], axis))
                # Masking zeroes what a parameter has for a channel; what is added to that would stay.
                if role == "in" and not one.zeros:
                    s.atoms.freeze(atoms, f"{where(node)} has weights that are computed from those of other channels")
    s.sized |= {n: replace(entries[0], also=entries[1:]) for n, entries in sized.items()}
    s.taken = taken  # an operation that reduces over one axis does not take the others


def _along(s: State, leaf: Node, tensor: str, axis: int) -> Tensor:
    shape = leaf.meta["shape"]
    if (tensor, axis) not in s.facets:
        s.facets[tensor, axis] = s.atoms.new(shape[axis])
    return shaped(s.facets[tensor, axis], shape, axis)


def _pushed(s: State, one: Computed, values: Mapping[Node, Tensor], sized: dict[str, tuple[Sized, ...]]) -> Tensor | None:
    """The weight, computed from atoms along one axis; None where a rule breaks."""
    known: dict[Node, Any] = dict(values)
    for node in one.nodes:
        if node in known:
            continue
        counts = s.counts.get(node, [])
        try:
            known[node] = s.step(node, map_arg(node.args, known.__getitem__), map_arg(node.kwargs, known.__getitem__))
        except Exception:  # whatever torch raises when an operation is called on atoms in a way that it does not take
            return None
        if shape_of(known[node]) != node.meta.get("shape"):
            return None
        if node in s.counts:
            s.counts[node] += counts
        entry = s.sized.pop(node.name, None)
        if entry is not None and (varying(entry.into) or varying(entry.out)):
            sized[node.name] = (*sized.get(node.name, ()), replace(entry, batch=False))
    return known[one.nodes[-1]]
