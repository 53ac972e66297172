"""Atoms through a whole graph: every node once, then whatever can only be settled when all of it is known."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from compress.graph.channels import computed_weights
from compress.graph.channels.atom_state import Named, State, tensors_in, unknown, where
from compress.graph.channels.atoms import along, slim
from compress.graph.channels.dispatch import propagate, reads_entries
from compress.graph.liveness import Liveness
from compress.graph.names import submodules
from compress.graph.trace.shapes import is_empty, shape_of

_CHOOSING = frozenset({"where", "nonzero", "argwhere", "masked_select"})
_NOBODY = "chooses by values, and nothing of the example inputs was chosen: give other ones"
_FOLLOWED = 2**19
"""Largest parameter in the graph whose entries get atoms of their own; beyond lie weights that are computed, not embeddings."""


def named(module: nn.Module) -> Named:
    """The modules of a model and its tensors, by name."""
    modules = dict(submodules(module, again=True))
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for path, part in modules.items():
        start = f"{path}." if path else ""
        for tensors in (part._parameters, part._buffers):
            for key, tensor in tensors.items():
                if tensor is not None:
                    name = start + key
                    found[name] = first.setdefault(id(tensor), name)
    return Named(modules, found)


def walk(s: State, module: GraphModule) -> None:
    """Push atoms through every node; values are let go after their last use."""
    values: dict[Node, Any] = {}
    live = Liveness(module.graph)
    # An operation between parameters and a weight looks into them, but not entry by entry.
    s.computed = computed_weights.find(module.graph, s.names, lambda user: not reads_entries(user))
    read = _read_parameters(s, module)
    s.step = functools.partial(propagate, s, module)
    look_up: Callable[[Node], Any] = values.__getitem__
    counted: set[Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = unknown(s, node, [], "is a model input")
        elif node.op == "get_attr":
            values[node] = _attribute(s, module, node, read)
        elif node.op == "output":
            unknown(s, node, tensors_in(map_arg(node.args, look_up)), "is the model's output")
        else:
            args, kwargs = map_arg(node.args, look_up), map_arg(node.kwargs, look_up)
            if _counts_by_values(node) or not counted.isdisjoint(node.all_input_nodes):
                counted.add(node)
            if node in counted and any(is_empty(one.meta.get("shape")) for one in (node, *node.all_input_nodes)):
                # Nothing lies there by which channels could be followed.
                values[node] = unknown(s, node, tensors_in((args, kwargs)), _NOBODY)
            else:
                values[node] = _followed(s, module, node, args, kwargs)
        for source in live.consumed(node):
            del values[source]


def _counts_by_values(node: Node) -> bool:
    """Whether values tell how long the result is: it gives places of what is true, or what is looked up by them."""
    index: Any = node.args[1] if node.target is operator.getitem else ()
    if any(isinstance(one, Node) and one.meta.get("boolean") for one in (index if isinstance(index, tuple) else (index,))):
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return name in _CHOOSING and (name != "where" or len(node.args) == 1)


def _followed(s: State, module: GraphModule, node: Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """A node's value. A rule that breaks, or gives another shape than the real operation, has misunderstood it: freeze."""
    tables: list[dict[Any, Any]] = [s.axes, s.sized, s.grouped, s.thin, s.products]
    # Rules write before they know that they fail: what they have added is taken back below.
    sizes = [len(table) for table in tables]
    try:
        value = propagate(s, module, node, args, kwargs)
        if shape_of(value) == node.meta.get("shape"):
            return value
        why = "is called in a way that the solver does not know"
    except Exception as error:  # whatever torch raises when an operation is called on atoms in a way that it does not take
        why = f"cannot be followed ({type(error).__name__})"
    for table, size in zip(tables, sizes, strict=True):
        # Dictionaries keep insertion order, so everything behind the old size is new. Edges stay: coupling more is always safe.
        for key in list(table)[size:]:
            del table[key]
    return unknown(s, node, tensors_in((args, kwargs)), why)


def _read_parameters(s: State, module: GraphModule) -> dict[str, list[Node]]:
    """Parameters and buffers in the graph, by first name -> the operations that look at their single entries."""
    read: dict[str, list[Node]] = {}
    followed = {name for one in s.computed.values() for name in one.leaves.values()}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            name = s.names.get(str(node.target), str(node.target))  # tied parameters are read wherever any of their names is
            read.setdefault(name, []).extend(user for user in node.users if reads_entries(user) and name not in followed)
    return read


def _attribute(s: State, module: GraphModule, node: Node, read: Mapping[str, list[Node]]) -> Any:
    name = s.names.get(str(node.target), str(node.target))
    value: Any = functools.reduce(getattr, str(node.target).split("."), module)
    if not isinstance(value, Tensor):
        return value
    # Nobody looks at single entries (it is the weight of a layer): that layer's own rule records its axes.
    if not read[name] or value.numel() > _FOLLOWED:
        atom = s.atoms.new(1)
        if read[name]:
            reason = f"{name} is too large to be followed entry by entry where {where(read[name][0])} uses it"
            s.taken.setdefault(name, reason)
            s.atoms.freeze(atom, reason)
        # 1-sized axes expanded, so that the atom is frozen once and not numel times.
        return atom.view([1] * value.ndim).expand(value.shape)
    if name not in s.parameters:  # read at several nodes, it is still one tensor
        s.parameters[name] = s.atoms.new(value.numel()).view(value.shape)
    return s.parameters[name]


def close(s: State) -> Tensor:
    """Class of every atom, after all that had to wait: rectangles, parameters in the graph, single entries."""
    for name, atoms in s.parameters.items():
        s.rectangles.append(atoms)
        # The layer's rule and the entries that the graph reads speak of the same axis, so they are united.
        for d in range(atoms.ndim):
            if (s.names.get(name, name), d) in s.axes:
                s.axis(name, d, "through", s.atoms.per_channel(atoms, d))
    for (name, _), (_, atoms) in s.axes.items():
        if name in s.taken:
            s.atoms.freeze(atoms, s.taken[name])
    _settle(s)
    # Only now, since uniting rectangles may couple what the axes below look at.
    classes = _rectangular(s)
    for name, t in s.parameters.items():
        labels = classes[t]
        for d in range(t.ndim):
            if (name, d) not in s.axes and differs(labels, d):
                s.axis(name, d, "through", along(t, d))
    for of, at, reason in s.single:
        t, dim = s.counted(of, at)
        # After all uniting: a single entry along channels of one class cannot lose its place.
        if differs(classes[slim(t)], dim):
            s.atoms.freeze(t, reason)
    return classes


def differs(labels: Tensor, dim: int) -> bool:
    """Whether the classes change along an axis."""
    if labels.shape[dim] < 2 or labels.stride(dim) == 0:
        return False
    values = labels.numpy()  # a call of NumPy costs a third of one of torch
    return bool((values != values.take([0], dim)).any())


def _rectangular(s: State) -> Tensor:
    """Classes once every tensor that is reshaped loses whole slices only.

    One axis keeps its freedom: the one with the most different channels. A shuffle's (groups, n) keeps n.
    """
    waiting = [slim(t) for t in s.rectangles]
    # To a fixed point: uniting for one tensor may break another one's rectangle. Edges only grow, so it ends.
    while True:
        classes = s.atoms.classes()
        edges = s.atoms.edges
        for t in waiting:
            labels = classes[t]
            dims = [d for d in range(t.ndim) if differs(labels, d)]
            if len(dims) > 1:
                # The longest choice of channels is the one worth having.
                free = max(dims, key=lambda d: len(torch.unique(along(labels, d))))
                s.atoms.unite_along(t, [d for d in dims if d != free])
        if s.atoms.edges == edges:
            return classes


def _settle(s: State) -> None:
    """Whether operands that are shared among channels have channels in common with the result."""
    now = False
    while s.shared:
        edges, waiting, classes = s.atoms.edges, s.shared, s.atoms.classes()
        s.shared = []
        for one in waiting:
            labels = classes[slim(one.main)]
            s.share(replace(one, axes=[d for d in range(labels.ndim) if differs(labels, d)]), now)
        now = s.atoms.edges == edges  # nothing else tells which axis has the channels
