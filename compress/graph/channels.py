"""Which channels of a model belong together, and which of them can go.

Atoms (see `atoms`) are pushed through the graph by `ops.propagate`. Then the classes of united atoms are read off every parameter
axis. Classes that touch the same axes form a group: the unit that a plan speaks of, named after its first producer.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from compress.errors import PlanMismatch
from compress.graph import rules
from compress.graph.ops import propagate, reads_channels, tensors_in
from compress.graph.rules import State
from compress.graph.trace import note_shapes


@dataclass(frozen=True)
class Member:
    """One parameter axis that a group touches.

    Attributes:
        tensor: state_dict name, e.g. `layer1.0.conv1.weight`.
        dim: the axis.
        role: "out" makes the channels, "in" consumes them, "through" passes them on (norms, depthwise convolution).
        index: channel of the group at each position of the axis; -1 where the position belongs to another group.
    """

    tensor: str
    dim: int
    role: str
    index: Tensor

    @property
    def module(self) -> str:
        """Path of the module that holds the tensor; empty for a parameter of the model itself."""
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True)
class Group:
    """Channels that touch the same axes. `frozen` says why none of them can go (None: all can, but one)."""

    name: str
    channels: int
    members: tuple[Member, ...]
    frozen: str | None
    labels: tuple[int, ...]

    def modules(self, role: str) -> tuple[str, ...]:
        """Paths of the modules that hold an axis of this role, in graph order, each once."""
        return tuple(dict.fromkeys(m.module for m in self.members if m.role == role))

    @property
    def producers(self) -> tuple[str, ...]:
        """Modules whose outputs these channels are."""
        return self.modules("out")

    @property
    def consumers(self) -> tuple[str, ...]:
        """Modules that read these channels."""
        return self.modules("in")


@dataclass(frozen=True)
class Channels:
    """The solved model.

    Attributes:
        groups: in graph order, frozen ones included.
        axes: (state_dict name, axis) -> (role, class of each position).
        sized: node name -> classes of its input and output; its constant arguments count channels.
        tied: state_dict name -> first name of the same tensor.
    """

    groups: tuple[Group, ...]
    axes: Mapping[tuple[str, int], tuple[str, Tensor]]
    sized: Mapping[str, tuple[Tensor, Tensor]]
    tied: Mapping[str, str]

    @property
    def removable(self) -> tuple[Group, ...]:
        """Groups that can lose channels."""
        return tuple(g for g in self.groups if g.frozen is None)

    def group(self, name: str) -> Group:
        """The group of that name.

        Raises:
            PlanMismatch: there is none.
        """
        if name not in self._by_name:
            raise PlanMismatch(f"The plan names layer {name}, which this model does not have. Run 'compress plan' on this model.")
        return self._by_name[name]

    @functools.cached_property
    def _by_name(self) -> dict[str, Group]:
        return {g.name: g for g in self.groups}


def solve(module: GraphModule, inputs: tuple[Tensor, ...]) -> Channels:
    """Solve a traced model. Data never matters, only the shapes of `inputs`.

    A grouped convolution loses whole groups; where that would tie all of its channels together (a channel shuffle behind it), it
    loses the same positions of every group instead.
    """
    if any("shape" not in node.meta for node in module.graph.nodes):
        note_shapes(module, inputs)
    by_position: frozenset[str] = frozenset()
    tied = _tied(module)
    while True:
        state = State(by_position, tied)
        _walk(state, module)
        classes = _close(state)
        stuck = {w for w, atoms in state.grouped.items() if len(atoms) > 1 and len(torch.unique(classes[atoms])) == 1}
        if not stuck:
            return _read(state, classes, tied)
        by_position |= stuck


def _tied(module: GraphModule) -> dict[str, str]:
    first: dict[int, str] = {}
    every = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: first.setdefault(id(tensor), name) for name, tensor in every}


def _walk(s: State, module: GraphModule) -> None:
    """Push atoms through every node; values are let go after their last use."""
    values: dict[Node, Any] = {}
    left = {node: len(node.users) for node in module.graph.nodes}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            values[node] = rules.unknown(s, node, [], "is a model input")
        elif node.op == "get_attr":
            values[node] = _attribute(s, module, node)
        elif node.op == "output":
            rules.unknown(s, node, tensors_in(map_arg(node.args, values.__getitem__)), "is the model's output")
        else:
            values[node] = propagate(
                s, module, node, map_arg(node.args, values.__getitem__), map_arg(node.kwargs, values.__getitem__)
            )
        for source in node.all_input_nodes:
            left[source] -= 1
            if left[source] == 0:
                del values[source]
    for name, atoms in s.parameters.items():
        s.rectangles.append(atoms)


def _attribute(s: State, module: GraphModule, node: Node) -> Any:
    name = str(node.target)
    value: Any = functools.reduce(getattr, name.split("."), module)
    if not isinstance(value, Tensor):
        return value
    if not any(reads_channels(user) for user in node.users):
        return s.atoms.new(1).expand(value.shape)
    if name not in s.parameters:
        s.parameters[name] = s.atoms.new(value.numel()).view(value.shape)
    return s.parameters[name]


def _close(s: State) -> Tensor:
    """Classes of all atoms, after every tensor that is reshaped has been made rectangular."""
    while True:
        classes = s.atoms.classes()
        changed = False
        for t in s.rectangles:
            labels = classes[t]
            dims = [d for d in range(t.ndim) if t.shape[d] > 1 and bool((labels != labels.narrow(d, 0, 1)).any())]
            if len(dims) > 1:
                # One axis keeps its freedom: the one with the most different channels. A shuffle's (groups, n) keeps n.
                free = max(dims, key=lambda d: _different(labels, d))
                s.atoms.unite_along(t, [d for d in dims if d != free])
                changed = True
        if not changed:
            break
    for t, dim, by in s.picked:
        labels = classes[t]
        if bool((labels != labels.narrow(dim, 0, 1)).any()):
            s.atoms.freeze(t, f"{by} takes single entries along the channels")
    for name, t in s.parameters.items():
        labels = classes[t]
        for d in range(t.ndim):
            if t.shape[d] > 1 and bool((labels != labels.narrow(d, 0, 1)).any()):
                s.axis(name, d, "through", t.movedim(d, 0).reshape(t.shape[d], -1)[:, 0])
    return classes


def _different(labels: Tensor, dim: int) -> int:
    return len(torch.unique(labels.movedim(dim, 0).reshape(labels.shape[dim], -1)[:, 0]))


def _read(s: State, classes: Tensor, tied: Mapping[str, str]) -> Channels:
    axes = {key: (role, classes[atoms]) for key, (role, atoms) in s.axes.items()}
    reasons = s.atoms.reasons(classes)
    touched: dict[int, list[tuple[int, int]]] = {}
    for number, ((tensor, _), (_, labels)) in enumerate(axes.items()):
        unique, counts = torch.unique(labels, return_counts=True)
        if len(unique) == 1:
            reasons.setdefault(int(unique[0]), f"all {len(labels)} channels of {tensor.rpartition('.')[0]} hang together")
        for label, count in zip(unique.tolist(), counts.tolist(), strict=True):
            touched.setdefault(label, []).append((number, count))
    alike: dict[Any, list[int]] = {}
    for label, signature in touched.items():
        alike.setdefault((tuple(signature), reasons.get(label)), []).append(label)
    groups: list[Group] = []
    names: dict[str, int] = {}
    keys = list(axes)
    order = sorted(alike.items(), key=lambda item: item[0][0][0])
    for (signature, reason), labels in order:
        groups.append(_group(labels, [keys[n] for n, _ in signature], axes, reason, names))
    sized = {name: (classes[a], classes[b]) for name, (a, b) in s.sized.items()}
    return Channels(tuple(groups), axes, sized, tied)


def _group(
    labels: list[int],
    keys: list[tuple[str, int]],
    axes: Mapping[tuple[str, int], tuple[str, Tensor]],
    reason: str | None,
    names: dict[str, int],
) -> Group:
    made = [k for k in keys if axes[k][0] == "out"] or keys
    member = set(labels)
    ordered = list(dict.fromkeys(label for label in axes[made[0]][1].tolist() if label in member))
    position = {label: i for i, label in enumerate(ordered)}
    first = made[0][0].rpartition(".")[0] or made[0][0]
    name = first if axes[made[0]][0] == "out" else f"input of {first}"
    names[name] = names.get(name, 0) + 1
    if names[name] > 1:
        name = f"{name}#{names[name]}"
    members = tuple(
        Member(tensor, dim, axes[tensor, dim][0], torch.tensor([position.get(x, -1) for x in axes[tensor, dim][1].tolist()]))
        for tensor, dim in keys
    )
    return Group(name, len(ordered), members, reason, tuple(ordered))
