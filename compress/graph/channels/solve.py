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
from compress.graph.trace.shapes import note_shapes

__all__ = ["Channels", "Group", "Member", "solve"]


def solve(module: GraphModule, inputs: tuple[Tensor, ...]) -> Channels:
    """Solve a traced model. Data never matters, only the shapes of `inputs`.

    A grouped convolution loses whole groups; where that would tie all of its channels together (a channel shuffle behind it), it
    loses the same positions of every group instead.
    """
    if any("shape" not in node.meta for node in module.graph.nodes):
        note_shapes(module, module.graph, inputs)
    thinned: frozenset[str] = frozenset()
    names = tied_names(module)
    # Ends: `thinned` grows each round by weights that the round before could not remove groups of.
    while True:
        state = State(thinned, names)
        walk(state, module)
        classes = close(state)  # united once more by `close` than the walk alone would
        # One class for all outputs: removing whole groups would remove the layer.
        stuck = {w for w, atoms in state.grouped.items() if len(atoms) > 1 and len(torch.unique(classes[atoms])) == 1}
        if not stuck:
            return read(state, classes)
        thinned |= stuck
