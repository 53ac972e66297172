"""Which channels of a model belong together, and which of them can go.

Atoms (see `atoms`) are pushed through the graph by `ops.propagate`. Then the classes of united atoms are read off every parameter
axis. Classes that touch the same axes form a group: the unit that a plan speaks of, named after its first producer.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import GraphModule

from compress.errors import PlanMismatch
from compress.graph.atoms import slim
from compress.graph.propagation import along, close, differs, tied_names, walk
from compress.graph.state import Sized, State
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
        sized: node name -> its constant arguments that count channels, with the classes of its input and output.
        tied: state_dict name -> first name of the same tensor.
        thinned: weights of grouped layers that lose the same positions of every group; the others lose whole groups.
        counted: nodes that compute a plain number from a count of channels.
        classes: how many labels there are; each is below this number.
    """

    groups: tuple[Group, ...]
    axes: Mapping[tuple[str, int], tuple[str, Tensor]]
    sized: Mapping[str, Sized]
    tied: Mapping[str, str]
    thinned: frozenset[str]
    counted: frozenset[str]
    classes: int

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
    thinned: frozenset[str] = frozenset()
    names = tied_names(module)
    while True:
        state = State(thinned, names)
        walk(state, module)
        classes = close(state)
        stuck = {w for w, atoms in state.grouped.items() if len(atoms) > 1 and len(torch.unique(classes[atoms])) == 1}
        if not stuck:
            return _read(state, classes)
        thinned |= stuck


def _read(s: State, classes: Tensor) -> Channels:
    axes = {key: (role, classes[atoms]) for key, (role, atoms) in s.axes.items()}
    number, reasons = s.atoms.reasons(classes)
    for (tensor, _), (_, labels) in axes.items():
        first = labels[:1]
        if bool((labels == first).all()) and number[first] < 0:
            count, layer = len(labels), tensor.rpartition(".")[0] or tensor
            number[first] = len(reasons)
            reasons.append(f"all {count} channels of {layer} hang together" if count > 1 else f"{layer} has a single channel")
    kinds = _kinds(s, classes, [labels for _, labels in axes.values()], number)
    keys = list(axes)
    names: dict[str, int] = {}
    groups = [_group(labels, [(keys[n], axes[keys[n]]) for n in where], names) for labels, where in _grouped(kinds, axes)]
    explained = [_explained(group, int(number[group.labels[0]]), reasons) for group in groups]
    sized = {name: replace(e, into=classes[e.into], out=classes[e.out]) for name, e in s.sized.items()}
    counted = frozenset(n.name for n, sizes in s.counts.items() if any(differs(classes[slim(t)], d) for t, d in sizes))
    return Channels(tuple(explained), axes, sized, s.names, s.thinned, counted, len(classes))


def _kinds(s: State, classes: Tensor, axes: Sequence[Tensor], number: Tensor) -> Tensor:
    """A number per class, equal where two classes touch the same axes equally often and are frozen for the same reason.

    Refinement, axis by axis: (number before, count on this axis) becomes the new number.
    """
    kinds = number - int(number.min())
    highest = int(kinds.max()) + 1
    for labels in (*axes, *_pieces(s, classes)):
        unique, counts = torch.unique(labels, return_counts=True)
        _, fresh = torch.unique(kinds[unique] * (int(counts.max()) + 1) + counts, return_inverse=True)
        kinds[unique] = highest + fresh
        highest += len(unique)
    return kinds


def _pieces(s: State, classes: Tensor) -> list[Tensor]:
    """The parts of every cut along channels: classes of different parts never share a group, so no part becomes empty."""
    found: list[Tensor] = []
    for t in s.pieces:
        labels = classes[slim(t)]
        found += [along(labels, d) for d in range(t.ndim) if t.numel() and differs(labels, d)]
    return found


def _grouped(kinds: Tensor, axes: Mapping[tuple[str, int], tuple[str, Tensor]]) -> list[tuple[Tensor, list[int]]]:
    """(classes, numbers of the axes they touch) of every group, in graph order."""
    touched: dict[int, list[int]] = {}
    for i, (_, labels) in enumerate(axes.values()):
        for kind in torch.unique(kinds[labels]).tolist():
            touched.setdefault(kind, []).append(i)
    used = torch.unique(torch.cat([labels for _, labels in axes.values()])) if axes else torch.empty(0, dtype=torch.long)
    order = torch.argsort(kinds[used], stable=True)
    found, counts = torch.unique_consecutive(kinds[used][order], return_counts=True)
    members = dict(zip(found.tolist(), used[order].split(counts.tolist()), strict=True))
    return [(members[kind], where) for kind, where in sorted(touched.items(), key=lambda item: item[1])]


def _group(classes: Tensor, axes: Sequence[tuple[tuple[str, int], tuple[str, Tensor]]], names: dict[str, int]) -> Group:
    """Channels are numbered in the order in which the first producer makes them."""
    (tensor, _), (role, labels) = next((axis for axis in axes if axis[1][0] == "out"), axes[0])
    inside = labels[torch.isin(labels, classes)]
    unique, inverse = torch.unique(inside, return_inverse=True)
    first = torch.full_like(unique, len(inside)).scatter_reduce(0, inverse, torch.arange(len(inside)), "amin")
    ordered = unique[torch.argsort(first)]
    position = torch.empty_like(unique)
    position[torch.argsort(first)] = torch.arange(len(unique))
    layer = tensor.rpartition(".")[0] or tensor
    name = layer if role == "out" else f"input of {layer}"
    names[name] = names.get(name, 0) + 1
    if names[name] > 1:
        name = f"{name}#{names[name]}"
    members: list[Member] = []
    for (tensor, dim), (role, labels) in axes:
        at = torch.searchsorted(unique, labels).clamp_(max=len(unique) - 1)
        members.append(Member(tensor, dim, role, torch.where(unique[at] == labels, position[at], -1)))
    return Group(name, len(ordered), tuple(members), None, tuple(ordered.tolist()))


def _explained(group: Group, number: int, reasons: Sequence[str]) -> Group:
    """The group with the reason why it is frozen, if it is."""
    if number >= 0:
        return replace(group, frozen=reasons[number])
    return replace(group, frozen="it is the only channel of its kind, and one must stay") if group.channels == 1 else group
