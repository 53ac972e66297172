"""Which channels of a model belong together, and which of them can go.

Atoms (see `atoms`) are pushed through the graph by `dispatch.propagate`; the classes of united atoms are then read off every
parameter axis by `grouping.read`. Classes that touch the same axes form a group: the unit that a plan speaks of, named after
its first producer.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule

from compress.graph.channels.atom_state import State
from compress.graph.channels.atoms import slim
from compress.graph.channels.grouping import read
from compress.graph.channels.groups import Channels, Group, Member
from compress.graph.channels.propagation import close, tied_names, walk
from compress.graph.channels.vanishing import freeze_what_does_not_vanish
from compress.graph.trace.shapes import note_shapes

__all__ = ["Channels", "Group", "Member", "solve"]


def solve(module: GraphModule, inputs: tuple[Tensor, ...]) -> Channels:
    """Solve a traced model. Data never matters, only the shapes of `inputs`.

    A grouped convolution loses whole groups, or the same positions of every group. Few wide groups are tried by their positions,
    all others by their number, and a layer that is left with nothing to choose the other way; where that leaves less to choose
    from than whole groups everywhere, it is whole groups. Attention loses whole heads, or the same channels of every head where
    all heads would have to go.
    """
    if any("shape" not in node.meta for node in module.graph.nodes):
        note_shapes(module, module.graph, inputs)
    names = tied_names(module)
    by_position, chosen = _settled(module, names, frozenset())
    if not chosen:
        return by_position
    by_number, _ = _settled(module, names, chosen)
    return max(by_position, by_number, key=lambda solved: sum(group.channels for group in solved.removable))


def _settled(module: GraphModule, names: dict[str, str], whole: frozenset[str]) -> tuple[Channels, frozenset[str]]:
    """The solved model, and the weights that lose positions of every group where whole groups may be better."""
    thinned: frozenset[str] = frozenset()
    inside: frozenset[str] = frozenset()
    # Ends: all grow each round, by weights and products that the round before has tried the other way.
    while True:
        state = State(thinned, whole, inside, names)
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
            return solved, frozenset() if done else chosen
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
