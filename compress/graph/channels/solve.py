"""Which channels of a model belong together, and which of them can go.

Atoms (see `atoms`) are pushed through the graph by `dispatch.propagate`; the classes of united atoms are then read off every
parameter axis by `grouping.read`. Classes that touch the same axes form a group: the unit that a plan speaks of, named after
its first producer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import GraphModule

from compress.graph.channels.atom_state import Named, State
from compress.graph.channels.atoms import slim
from compress.graph.channels.grouping import read
from compress.graph.channels.groups import WITHIN, Channels, Group, Member
from compress.graph.channels.propagation import close, named, walk
from compress.graph.channels.vanishing import freeze_what_does_not_vanish
from compress.graph.trace.shapes import note_shapes

__all__ = ["Channels", "Group", "Member", "solve"]


def solve(module: GraphModule, inputs: tuple[Tensor, ...]) -> Channels:
    """Solve a traced model. Data never matters, only the shapes of `inputs`.

    A grouped convolution loses whole groups, or the same positions of every group. Few wide groups are tried by their positions,
    all others by their number, and a layer that is left with nothing to choose the other way; where that leaves less to choose
    from than whole groups everywhere, it is whole groups. Attention loses whole heads, and, as groups of their own, the
    same channels of every head; these alone where all heads would have to go.
    """
    if any("shape" not in node.meta for node in module.graph.nodes):
        note_shapes(module, module.graph, inputs)
    of, found = named(module), list[_Settled]()
    found.append(_settled(module, of))
    if found[0].chosen:
        found.append(_settled(module, of, found[0].chosen))
    best = max(found, key=lambda one: sum(group.channels for group in one.channels.removable))
    solved = replace(best.channels, inputs=inputs)
    return _with_inner(solved, _settled(module, of, best.whole, best.heads).channels) if best.heads - best.inside else solved


def _with_inner(solved: Channels, within: Channels) -> Channels:
    """Whole heads and the same channels of all heads are chosen for themselves: what is left of one is a model like the other."""
    known: dict[tuple[tuple[str, int], ...], list[Group]] = {}
    for group in solved.groups:
        known.setdefault(tuple((m.tensor, m.dim) for m in group.members), []).append(group)

    def new(group: Group) -> bool:
        same = known.get(tuple((m.tensor, m.dim) for m in group.members), ())
        return not any(
            all(torch.equal(a.index, b.index) for a, b in zip(group.members, other.members, strict=True)) for other in same
        )

    inner = tuple(replace(g, name=f"{g.name}{WITHIN}", inner=True) for g in within.removable if new(g))
    return replace(solved, within=within, inner=inner) if inner else solved


@dataclass(frozen=True)
class _Settled:
    """A solved model; weights that lose positions of every group where whole groups may be better; products with heads."""

    channels: Channels
    chosen: frozenset[str]
    whole: frozenset[str]
    inside: frozenset[str]
    heads: frozenset[str]


def _settled(
    module: GraphModule, of: Named, whole: frozenset[str] = frozenset(), inside: frozenset[str] = frozenset()
) -> _Settled:
    """The model solved, where the products `inside` lose the same channels of all heads from the start."""
    thinned: frozenset[str] = frozenset()
    # Ends: all grow each round, by weights and products that the round before has tried the other way.
    while True:
        state = State(thinned, whole, inside, of)
        walk(state, module)
        classes = close(state)  # united once more by `close` than the walk alone would
        choices = {w: len(torch.unique(classes[atoms])) for w, atoms in (state.grouped | state.thin).items()}
        # One class for all outputs: removing whole groups would remove the layer.
        stuck = {w for w, atoms in state.grouped.items() if len(atoms) > 1 and choices[w] == 1}
        # No more choices than there are groups: what lies around ties the positions.
        coarse = {w for w in state.thin if w not in thinned and choices[w] <= state.groups[w]}
        # One class for all heads: a single head, or one that serves all others.
        alone = {name for name, atoms in state.heads.items() if len(torch.unique(classes[slim(atoms)])) == 1}
        if not stuck and not coarse and not alone:
            freeze_what_does_not_vanish(state, module, classes)
            solved, chosen = read(state, classes), frozenset(state.thin) - thinned
            done = not (thinned or whole or inside) and _free(state, solved)
            return _Settled(solved, frozenset() if done else chosen, whole, inside, inside | state.heads.keys())
        thinned, whole, inside = thinned | stuck, whole | coarse, inside | alone


def _free(state: State, solved: Channels) -> bool:
    """Whether all positions that layers lose of every group can go, each for itself, and are of no layer that loses whole groups.

    Whole groups are fewer, and tie inputs to outputs, so that they leave less to choose from; nothing else would change.
    """
    if state.zeroed or not state.thin:
        return not state.thin
    # The first axis is as long as all groups have outputs, the second as one has inputs.
    repeated = {(state.names.get(w, w), dim): 1 if dim else state.groups[w] for w in state.thin for dim in (0, 1)}
    going = dict.fromkeys(repeated, 0)
    for member in (member for group in solved.removable for member in group.members):
        if (key := (member.tensor, member.dim)) in going:
            going[key] += int((member.index >= 0).sum())
    others = [(state.names.get(w, w), 0) for w in state.grouped]
    if any(key not in solved.axes for key in (*repeated, *others)):
        return False
    classes = {key: torch.unique(solved.axes[key][1]) for key in (*repeated, *others)}
    own = torch.cat([classes[key] for key in repeated])
    return (
        all(going[key] == len(solved.axes[key][1]) == len(classes[key]) * times for key, times in repeated.items())
        and len(torch.unique(own)) == len(own)
        and not any(bool(torch.isin(classes[key], own).any()) for key in others)
    )
