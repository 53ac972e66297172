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
    from than whole groups everywhere, it is whole groups.
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
    """The solved model, and the weights that lose positions of every group without having to."""
    thinned: frozenset[str] = frozenset()
    # Ends: both grow each round, by weights that the round before has tried the other way.
    while True:
        state = State(thinned, whole, names)
        walk(state, module)
        classes = close(state)  # united once more by `close` than the walk alone would
        choices = {w: len(torch.unique(classes[atoms])) for w, atoms in (state.grouped | state.thin).items()}
        # One class for all outputs: removing whole groups would remove the layer.
        stuck = {w for w, atoms in state.grouped.items() if len(atoms) > 1 and choices[w] == 1}
        # No more choices than there are groups: what lies around ties the positions.
        coarse = {w for w in state.thin if w not in thinned and choices[w] <= state.groups[w]}
        if not stuck and not coarse:
            freeze_what_does_not_vanish(state, module, classes)
            return read(state, classes), frozenset(state.thin) - thinned
        thinned, whole = thinned | stuck, whole | coarse
