"""Nodes of a graph as parts of what could become one layer.

A part is a layer that is an affine map (`layer_maps`), a norm or a linearized activation, something that eval mode does not
notice (dropout), an activation (a gap, which an affine function can close), the mean over all positions with the flatten behind
it, or a
skip span: two runs from one value to their sum.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule, Node
from torchvision.ops import StochasticDepth

from compress.graph import operations
from compress.graph.channel_affine import ChannelAffine
from compress.graph.merge import layer_maps
from compress.graph.merge.affine import Form

# Silent in eval mode only: a merge is about inference.
_SILENT = frozenset({nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, StochasticDepth})
_ADAPTIVE = {nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3}
_IN_PLACE = frozenset({"iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "iand", "ior"})
_PRODUCTS = frozenset({operator.mul, operator.imul, torch.mul, "mul", "mul_"})


@dataclass(frozen=True)
class Leaf:
    """A node that is a part by itself.

    Attributes:
        node: of the graph.
        place: its number in the graph.
        role: `layer`, `norm` (any map of channels alone), `silent`, `activation`, `mean` or `flatten`.
        form: of layers and norms.
        axis: where their channels are, 1 or -1; 0 for the rest.
    """

    node: Node
    place: int
    role: str
    form: Form | None = None
    axis: int = 0

    @property
    def name(self) -> str:
        """Path of the module, or name of the node."""
        return called(self.node)

    @property
    def names(self) -> tuple[tuple[int, str], ...]:
        """What a plan calls it, with its place; nothing if it is implicit."""
        return ((self.place, self.name),) if self.role == "layer" else ()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Its node."""
        return (self.node,)

    @property
    def entry(self) -> Node:
        """What it reads."""
        return self.node.all_input_nodes[0]


@dataclass(frozen=True)
class Span:
    """Two runs from one value to the sum at `node`; one of them may be empty."""

    node: Node
    place: int
    branches: tuple[Run, Run]

    @property
    def names(self) -> tuple[tuple[int, str], ...]:
        """What a plan calls what is in it, with places: layers by path, sums by node."""
        inside = (name for run in self.branches for part in run.parts for name in part.names)
        return (*sorted(inside), (self.place, self.node.name))

    @property
    def nodes(self) -> tuple[Node, ...]:
        """Everything in it, the sum last."""
        return (*(n for run in self.branches for part in run.parts for n in part.nodes), self.node)

    @property
    def entry(self) -> Node:
        """What both runs begin with."""
        return self.branches[0].entry


Part = Leaf | Span


@dataclass(frozen=True)
class Run:
    """Parts that follow each other, from the value `entry` on.

    Attributes:
        entry: what the first part reads.
        parts: in order.
        axis: of the channels at its end; 0 where it does not matter.
        starts, stops: why it does not reach further.
    """

    entry: Node
    parts: tuple[Part, ...] = ()
    axis: int = 0
    starts: str = ""
    stops: str = ""


def leaf(module: GraphModule, node: Node, place: int, refused: Mapping[str, str]) -> Leaf | str:
    """A node as a part, or why it is none.

    Args:
        module: traced model with its shapes noted.
        node: of its graph.
        place: its number there.
        refused: modules that cannot be changed, with the reason.
    """
    if node.op != "call_module":
        role = _positions(node)
        return Leaf(node, place, role, axis=1 if role == "mean" else 0) if role else _words(node)
    path = str(node.target)
    m: Any = module.get_submodule(path)
    kind, opaque = type(m), module.meta.get("opaque", {})
    if path in opaque:
        return f"stays whole because it {opaque[path]}"
    if m._forward_hooks or m._forward_pre_hooks:
        return "has hooks, which may change what it computes"
    # By name the input is in kwargs, where replacing nodes does not look for it.
    if len(node.all_input_nodes) != 1 or len(node.args) != 1 or node.kwargs:
        return "is called with more than its input, or with that by name"
    if kind in _SILENT:
        return Leaf(node, place, "silent")
    if kind in _ADAPTIVE and _ones(m.output_size, _ADAPTIVE[kind]):
        return Leaf(node, place, "mean", axis=1)
    if kind is nn.Flatten and (m.start_dim, m.end_dim) == (1, -1):
        return Leaf(node, place, "flatten")
    if path in refused:
        return f"cannot be changed: {refused[path]}"
    if kind in operations.ACTIVATIONS:
        return Leaf(node, place, "activation")
    form = layer_maps.form(m)
    if isinstance(form, str):
        return form
    axis = -1 if kind is nn.Linear else m.axis if kind is ChannelAffine else 1
    return Leaf(node, place, "layer" if kind in layer_maps.LAYERS else "norm", form, axis)


def _positions(node: Node) -> str:
    """`mean` or `flatten` where a function is one over all positions."""
    axes = rank(node.all_input_nodes[0]) if node.all_input_nodes else 0
    args: list[Any] = [*node.args[1:], *node.kwargs.values()]
    if node.target in (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d):
        return "mean" if len(args) == 1 and _ones(args[0], axes - 2) else ""
    if node.target in (torch.mean, "mean") and args and axes > 2:
        given = [args[0]] if isinstance(args[0], int) else args[0]
        # Axes may be negative.
        every = isinstance(given, list | tuple) and sorted(a % axes for a in given) == list(range(2, axes))
        return "mean" if every and args[1:] in ([], [True], [False]) else ""
    return "flatten" if node.target in (torch.flatten, "flatten") and args in ([1], [1, -1]) else ""


def _ones(size: Any, dims: int) -> bool:
    return size == 1 or tuple(size if isinstance(size, list | tuple) else ()) == (1,) * dims


def shared(module: GraphModule) -> dict[str, str]:
    """Modules that several calls or several names use, with the reason why they cannot become another."""
    calls = Counter(str(node.target) for node in module.graph.nodes if node.op == "call_module")
    found = {path: f"it is called {n} times" for path, n in calls.items() if n > 1}
    owners: dict[int, list[str]] = {}
    for name, tensor in module.named_parameters(remove_duplicate=False):
        owners.setdefault(id(tensor), []).append(name)
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for every in owners.values():
        # A weight that the graph reads itself would not follow the merge.
        if len(every) > 1 or every[0] in read:
            where = "the graph itself" if len(every) == 1 else ", ".join(every[:3])
            found.update((name.rpartition(".")[0], f"its weights are those of {where}") for name in every)
    return found


def sizes(node: Node) -> tuple[int, ...] | None:
    """Sizes of a node's value, where they are noted and it is one tensor."""
    noted: Any = node.meta.get("shape")
    return noted if isinstance(noted, tuple) and all(isinstance(n, int) for n in noted) else None


def rank(node: Node) -> int:
    """Number of axes of a node's value; 0 where it is not known."""
    return len(sizes(node) or ())


def mutates(module: GraphModule, node: Node, value: Node) -> bool:
    """Whether a node changes in place a value that it reads."""
    if node.op == "call_module":
        # An activation's own inplace flag; its input is its only value.
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    in_place = name in _IN_PLACE or (name.endswith("_") and not name.endswith("__")) or bool(node.kwargs.get("inplace"))
    return in_place and node.all_input_nodes[0] is value


def called(node: Node) -> str:
    """Path of the module, or name of the node."""
    return str(node.target) if node.op == "call_module" else node.name


def listed(consumers: Iterable[Node]) -> str:
    """The first few by name."""
    every = [called(consumer) for consumer in consumers]
    return f"{', '.join(every[:3])}{' and others' if len(every) > 3 else ''}" or "nothing"


def _words(node: Node) -> str:
    if node.op in ("placeholder", "output"):
        return f"is the model's {'input' if node.op == 'placeholder' else 'output'}"
    return "is a product" if node.target in _PRODUCTS else "is no layer that merges"
