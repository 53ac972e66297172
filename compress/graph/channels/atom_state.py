"""What the rules write to while atoms are pushed through a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from compress.graph.channels.atoms import Atoms, varies, varying
from compress.graph.trace.shapes import holds_tensor

Count = tuple[Tensor | str, int]
"""What a size counts: atoms, or a parameter by name, and one of its axes."""


@dataclass(frozen=True)
class Sized:
    """A node whose constant arguments count channels and must follow them.

    Attributes:
        into: atoms (after solving: classes) of its input.
        out: of its output; the input where it gives several.
        args: what the node was called with; its input stands first, the sizes are plain numbers.
        kwargs: likewise by name.
        also: the same for further axes, of a weight that is computed.
        batch: whether its first axis is that of samples, so that its size is not a number of the model.
    """

    into: Tensor
    out: Tensor
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    also: tuple[Sized, ...] = ()
    batch: bool = True


@dataclass(frozen=True)
class Shared:
    """An operand with one entry for all along some axes of a product or a sum.

    Attributes:
        main: atoms of the result.
        other: of the operand.
        axes: along which the channels of the result lie.
        reason: why the operand stays where all of them lie along the axes of its one entry.
    """

    main: Tensor
    other: Tensor
    axes: Sequence[int]
    reason: str


@dataclass(frozen=True)
class Computed:
    """What lies between parameters and a weight.

    Attributes:
        nodes: in graph order, parameters included.
        leaves: the parameters, with their names.
        zeros: whether a column of zeros of the parameters is one of the weight.
    """

    nodes: tuple[Node, ...]
    leaves: Mapping[Node, str]
    zeros: bool


@dataclass(frozen=True)
class Named:
    """What a model holds.

    Attributes:
        modules: by every name.
        first: every name of a parameter or buffer -> the first name of the same tensor.
    """

    modules: Mapping[str, nn.Module]
    first: Mapping[str, str]


class State:
    """Atoms, parameter axes, and what must be looked at once all classes are known.

    Attributes:
        axes: (state_dict name, dim) -> role and atoms; "out" makes channels, "in" consumes them, "through" passes them on.
        sized: node name -> arguments that count channels.
        rectangles: tensors that are reshaped, so they must stay rectangular.
        single: (atoms or a parameter's name, axis, reason): frozen should the classes differ along that axis.
        pieces: parts of a cut tensor; none of them may become empty.
        counts: plain numbers that were computed from sizes -> the tensors (parameters by name) and axes whose sizes those are.
        shapes: nodes that give several sizes -> the same for each of them.
        grouped: weight of a layer that loses whole groups -> atoms of its outputs.
        products: nodes that multiply activations -> for each product the letters of its operands' axes, with their atoms.
        thinned: weights of grouped layers that have to lose the same positions of every group instead.
        whole: weights of grouped layers that have to lose whole groups.
        thin: weight of a layer that loses the same positions of every group -> atoms of its outputs.
        groups: how many groups such a layer has.
        parameters: parameters and buffers that stand in the graph themselves, by first name.
        taken: of those, first names of the ones that an unknown operation takes, with the reason.
        modules: every module by every name.
        names: every name of a parameter or buffer -> the first name of the same tensor.
        computed: functional layers -> what their weight is computed from.
        heads: products that sum over channels, or weigh them -> atoms of their heads, which go as a whole.
        inside: those where the same channels of all heads go instead.
        both: axes of tied tensors that make channels in one layer, and consume them in another.
        shared: operands of which it is not known yet whether they have channels in common with the result.
        summed: names of nodes that sum over all channels, so that what they give has none.
        zeroed: atoms of which a statistic is taken, the node that gives them, and why they stay should they not count as zeros.
        facets: atoms along one axis of a parameter that a weight is computed from.
        step: the value of a node, given those of its arguments.
    """

    def __init__(self, thinned: frozenset[str], whole: frozenset[str], inside: frozenset[str], of: Named):
        self.atoms = Atoms()
        self.thinned, self.whole, self.inside = thinned, whole, inside
        self.modules, self.names = of.modules, of.first
        self.axes: dict[tuple[str, int], tuple[str, Tensor]] = {}
        self.sized: dict[str, Sized] = {}
        self.rectangles: list[Tensor] = []
        self.single: list[tuple[Tensor | str, int, str]] = []
        self.pieces: list[Tensor] = []
        self.counts: dict[Node, list[Count]] = {}
        self.shapes: dict[Node, list[list[Count]]] = {}
        self.grouped: dict[str, Tensor] = {}
        self.products: dict[str, list[list[tuple[str, Tensor]]]] = {}
        self.thin: dict[str, Tensor] = {}
        self.groups: dict[str, int] = {}
        self.parameters: dict[str, Tensor] = {}
        self.taken: dict[str, str] = {}
        self.computed: Mapping[Node, Computed] = {}
        self.facets: dict[tuple[str, int], Tensor] = {}
        self.heads: dict[str, Tensor] = {}
        self.both: set[tuple[str, int]] = set()
        self.shared: list[Shared] = []
        self.summed: set[str] = set()
        self.zeroed: list[tuple[Tensor, Node, str]] = []
        self.step: Callable[[Node, tuple[Any, ...], Mapping[str, Any]], Any]

    def axis(self, tensor: str, dim: int, role: str, atoms: Tensor) -> None:
        """Record which atom each index of a parameter's axis belongs to; a layer called twice ties both."""
        key = (self.names.get(tensor, tensor), dim)  # one record per tensor, whatever name it is reached by
        if key not in self.axes:
            self.axes[key] = (role, atoms)
            return
        before, known = self.axes[key]
        # Coupled: the same rows of one tensor cannot stay for one call and go for another.
        self.atoms.unite(known, atoms)
        if "in" in (role, before) and role != before:  # a tied tensor that one layer makes channels with and another reads
            self.axes[key] = ("in", known)
            self.both.add(key)

    def share(self, one: Shared, now: bool = False) -> None:
        """Settle an operand, or keep it for when more is known: of heads and what is in them one may turn out to be no channels.

        Args:
            one: what is settled.
            now: whether nothing more will be known.
        """
        sizes = (1,) * (one.main.ndim - one.other.ndim) + tuple(one.other.shape)
        once = sum(sizes[d] == 1 for d in one.axes)
        if 0 < once < len(one.axes) and not now:
            self.shared.append(one)
        elif once and once == len(one.axes):
            # Its single entry along the channels serves all of them, as a gate of one map does.
            self.atoms.freeze(one.other, one.reason)
        else:
            self.atoms.unite(one.main, one.other)

    def counted(self, of: Tensor | str, dim: int) -> tuple[Tensor, int]:
        """The atoms that a size counts, and their axis; those of a parameter are known when the walk is over."""
        if isinstance(of, Tensor):
            return of, dim
        _, atoms = self.axes.get((of, dim), ("", torch.zeros(1, dtype=torch.long)))
        return atoms, 0


def where(node: Node) -> str:
    """What to call a node in a reason: `layer4.0.conv1 (resnet.py:93)`."""
    # torch's generated names (conv1_2) would mean nothing to a user
    name = str(node.target) if node.op == "call_module" else getattr(node.target, "__name__", str(node.target))
    source = node.meta.get("source", "") if node.op.startswith("call") else ""
    return f"{name} ({source})" if source else name


def of_tables(node: Node) -> bool:
    """Whether a value is a parameter or a buffer, or computed from these and sizes alone."""
    seen, waiting = {node}, [node]
    while waiting:
        one = waiting.pop()
        if one.op in ("placeholder", "call_module"):
            return False
        fresh = {source for source in one.all_input_nodes if holds_tensor(source.meta.get("shape"))} - seen
        seen |= fresh
        waiting += fresh
    return True


def shaped(vector: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    # Expanded and not repeated, so that Atoms looks at one element per axis.
    """A vector of atoms along one axis of a shape, expanded along the others."""
    view = [1] * len(shape)
    view[dim] = -1
    return vector.view(view).expand(tuple(shape))


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested arguments, in order."""
    found: list[Tensor] = []
    _gather(value, found)
    return found


def _gather(value: Any, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, list | tuple):
        for part in value:
            if type(part) is not int:  # sizes, of which there are many
                _gather(part, found)
    elif value and isinstance(value, Mapping):  # asked last: it takes its time to tell that a number is none
        for part in value.values():
            _gather(part, found)


def unknown(s: State, node: Node, values: Sequence[Tensor], why: str = "is not known to the solver") -> Any:
    """Freeze all that comes in; what goes out is one frozen atom."""
    reason = f"{where(node)} {why}"
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            s.taken.setdefault(s.names.get(str(source.target), str(source.target)), reason)  # the first reason is the one to show
    for t in values:
        s.atoms.freeze(t, reason)
    # One atom for all of the output: it cannot be told apart, and stays.
    fixed = s.atoms.new(1)
    s.atoms.freeze(fixed, reason)
    return _filled(fixed, node.meta.get("shape"))


def _filled(atom: Tensor, shape: Any) -> Any:
    if isinstance(shape, dict):
        return {k: _filled(atom, v) for k, v in shape.items()}
    if shape is None:
        return None
    if all(isinstance(n, int) for n in shape):
        return atom.view(()).expand(shape)
    return tuple(_filled(atom, part) for part in shape)


def argument(args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, by place or by name."""
    return args[position] if len(args) > position else kwargs.get(name, default)


def positions_only(s: State, node: Node, x: Tensor, dims: Sequence[int], why: str) -> Any:
    """An operation that mixes entries along `dims`: channels elsewhere pass, channels there freeze.

    Where channels lie along one of those and along another axis (weights of branches), what is mixed goes together.
    """
    mixed = [d % x.ndim for d in dims if varies(x, d)]
    if mixed and set(varying(x)) <= set(mixed):
        return unknown(s, node, [x], why)
    return s.atoms.unite_along(x, mixed) if mixed else x
