"""What could become one layer: runs of parts, each of which alone reads the part before it.

Spans are found as the graph is read: at a sum, both operands are looked back to where their runs begin; if that is one value,
everything between is one part. So a residual network is a run of spans, and each branch of a span is a run of its own.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch.fx import GraphModule, Node

from compress.graph.linearize import activations
from compress.graph.merge.parts import Leaf, Part, Run, Span, called, leaf, listed, mutates, rank, shared, sizes

_SUMS = frozenset({operator.add, operator.iadd, torch.add, "add", "add_"})


@dataclass(frozen=True)
class Chain:
    """A run as it is told to others.

    Attributes:
        steps: names of each convolution, linear layer or pool, in order; of a skip span all of its layers, then its sum's node.
        activations: activations between step i and step i + 1, by gap; those inside a span are in the chains of its branches.
        starts, stops: why it does not reach further back, and further on.
    """

    steps: tuple[tuple[str, ...], ...]
    activations: tuple[tuple[str, ...], ...]
    starts: str
    stops: str

    @property
    def layers(self) -> tuple[str, ...]:
        """Every name in order."""
        return tuple(name for step in self.steps for name in step)


def chains(module: GraphModule) -> tuple[Chain, ...]:
    """Chains of two steps or more, or of one span, with activations taken for linearized; branches follow the chain of their
    span.

    Args:
        module: traced model with its shapes noted.
    """
    found: list[Chain] = []
    for run in runs(module):
        ends = [i for i, part in enumerate(run.parts) if is_step(part)]
        # A single span counts: its skip and its branches can become one layer by themselves.
        if len(ends) > 1 or any(isinstance(part, Span) for part in run.parts):
            gaps = [run.parts[i:j] for i, j in itertools.pairwise(ends)]
            activations = tuple(tuple(p.name for p in gap if isinstance(p, Leaf) and p.role == "activation") for gap in gaps)
            found.append(Chain(tuple(names((run.parts[i],)) for i in ends), activations, run.starts, run.stops))
    return tuple(found)


def is_step(part: Part) -> bool:
    """Whether a merge can begin or end with the part."""
    return isinstance(part, Span) or part.role == "layer"


def names(parts: Iterable[Part]) -> tuple[str, ...]:
    """What a plan calls the parts, in the order of the graph."""
    return tuple(name for _, name in sorted(named for part in parts for named in part.names))


def runs(module: GraphModule) -> tuple[Run, ...]:
    """Every run of a model whose shapes are noted, branches of spans behind the run that holds the span."""
    reading = _read(module)
    return tuple(each for run in reading.open.values() for each in _with_branches(reading.ended(run)))


def barriers(module: GraphModule) -> dict[str, str]:
    """What continues no run, by path or name of the node, with the reason; as `runs` reads the model."""
    return {called(node): reason for node, reason in _read(module).why.items()}


def _read(module: GraphModule) -> _Reading:
    if any("shape" not in node.meta for node in module.graph.nodes):
        raise ValueError("the shapes of the model are not known; call note_shapes first")
    reading = _Reading(module)
    # In graph order: what a node reads is in a run, or known not to be, before the node is looked at.
    for node, place in reading.places.items():
        reading.read(node, place)
    return reading


def _with_branches(run: Run) -> Iterator[Run]:
    yield run
    for part in run.parts:
        if isinstance(part, Span):
            for branch in part.branches:
                yield from _with_branches(branch)


class _Reading:
    """The graph, read node by node.

    Attributes:
        open: runs so far, by the node that each ends with.
        why: nodes that are no part of a run, or begin a new one, with the reason.
    """

    def __init__(self, module: GraphModule):
        self.module = module
        self.places = {node: place for place, node in enumerate(module.graph.nodes)}
        self.open: dict[Node, Run] = {}
        self.why: dict[Node, str] = {}
        self.refused = shared(module) | {
            activation.path: activation.refused for activation in activations(module) if activation.refused
        }

    def read(self, node: Node, place: int) -> None:
        """Put the node behind the run that it continues, or remember why it continues none."""
        operands = _operands(node)
        part = leaf(self.module, node, place, self.refused) if operands is None else self._span(node, place, *operands)
        if isinstance(part, str):
            self.why[node] = part
            return
        branches = part.branches if isinstance(part, Span) else ()
        entry, inside = part.entry, set(part.nodes)
        outside = [user for user in entry.users if user not in inside]
        # What is changed in place later must be read before, and a merge may read later than the first of its parts did.
        # Those before all of the inside nodes are done by the time that any of them reads.
        late = [user for user in outside if self.places[user] > min(self.places[n] for n in inside)]
        if changing := [user for user in late if mutates(self.module, user, entry)]:
            self.why[node] = f"reads what {listed(changing)} changes in place"
            return
        for branch in branches:
            # They are now inside a span, and no runs of their own any longer.
            if branch.parts:
                del self.open[branch.parts[-1].node]
        axis = part.axis if isinstance(part, Leaf) else next((b.axis for b in branches if b.axis), 0)
        self._append(entry, part, axis, outside)

    def ended(self, run: Run, stops: str = "") -> Run:
        """The run with the reason why it ends where it does."""
        consumers = list(run.parts[-1].node.users) if run.parts else []
        if not stops and len(consumers) == 1:
            stops = f"{called(consumers[0])} {self.why.get(consumers[0], 'is no part of it')}"
        return replace(run, stops=stops or f"its result is read by {listed(consumers)}")

    def _append(self, entry: Node, part: Part, axis: int, outside: Sequence[Node]) -> None:
        before = self.open.get(entry)
        if before is None:
            before = Run(entry, starts=f"{called(entry)} {self.why.get(entry, 'is no part of it')}")
        elif reason := _break(before, part, axis, outside):
            self.why[part.nodes[0]] = reason
            before = Run(entry, starts=f"{called(part.nodes[0])} {reason}")
        else:
            del self.open[entry]
        # Vectors have no axis of space, so axis 1 and -1 are the same.
        axis = 0 if rank(part.node) == 2 else axis or before.axis
        self.open[part.node] = replace(before, parts=(*before.parts, part), axis=axis)

    def _span(self, node: Node, place: int, one: Node, other: Node) -> Span | str:
        branches = [self._back(operand) for operand in (one, other)]
        if branches[0].entry is not branches[1].entry:
            return f"adds what comes from {' and '.join(called(b.entry) for b in branches)}, not from one value"
        parts = [part for branch in branches for part in branch.parts]
        # x + x is twice x: no span, as there is nothing between.
        if one is other or not any(is_step(part) for part in parts):
            return "adds a map to itself"
        if any(isinstance(part, Leaf) and part.role == "mean" for part in parts):
            return "adds a mean over positions"
        if sizes(one) != sizes(other) or sizes(one) is None:
            return "adds maps of different sizes"
        if len({branch.axis for branch in branches if branch.axis}) > 1:
            return "adds maps with their channels on different axes"
        return Span(node, place, (self.ended(branches[0], _ENDS), self.ended(branches[1], _ENDS)))

    def _back(self, operand: Node) -> Run:
        """The run that ends with an operand of a sum, or none if others read it: then it may be where the span begins."""
        # A second reader would lose its value in a merge.
        return self.open[operand] if operand in self.open and len(operand.users) == 1 else Run(operand)


def _break(before: Run, part: Part, axis: int, outside: Sequence[Node]) -> str:
    """Why a part does not continue the run that ends with what it reads."""
    if outside:
        return f"shares its input with {listed(outside)}"
    if axis and before.axis and axis != before.axis:
        return "has its channels on another axis"
    alone = part if isinstance(part, Leaf) else None
    pooled = any(isinstance(p, Leaf) and p.role == "mean" for p in before.parts)
    # Flatten after a mean has one position per channel; elsewhere positions become channels.
    if alone is not None and alone.role == "flatten" and not pooled:
        return "puts positions beside each other"
    if pooled and (alone is None or alone.role == "mean" or (alone.form is not None and alone.form.size)):
        return "comes behind a mean over positions"
    return ""


_ENDS = "it ends in the sum"


def _operands(node: Node) -> tuple[Node, Node] | None:
    if node.target not in _SUMS or node.kwargs or len(node.args) != 2:
        return None
    one, other = node.args
    return (one, other) if isinstance(one, Node) and isinstance(other, Node) else None
