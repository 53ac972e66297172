"""Which layers tell what a group of channels is worth: those whose moments a pass has to take.

As a rule the layers that read it and that regression understands. Channels of queries and keys are read by none: they are
multiplied with each other and added up, and what makes them tells what goes with each.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import GraphModule

from compress.graph.channels.solve import Group, Member
from compress.statistics.layers import Layer, layers


def measured(group: Group, known: dict[str, Layer]) -> list[Member]:
    """Weights that consume the group and that regression understands."""
    weights = [m for m in group.members if m.role == "in" and m.module in known and m.tensor.endswith(".weight")]
    # Where the same positions of every group go, the layer's input axis serves all of its regressions.
    return [m for m in weights if m.dim == known[m.module].reads and (known[m.module].groups == 1 or m.dim == 1)]


def maker(group: Group, known: dict[str, Layer]) -> Member | None:
    """The weight that makes channels which no layer reads, the first one: as a rule that of the queries. None if a layer does."""
    if any(m.role == "in" for m in group.members):
        return None
    for m in group.members:
        one = known.get(m.module) if m.role == "out" and m.tensor.endswith(".weight") else None
        if one is not None and one.groups == 1 and m.dim == 1 - one.reads:
            return m
    return None


def judged(group: Group, known: dict[str, Layer]) -> list[Member]:
    """The weights of all layers that tell what a group is worth; where there are none no loss can be told."""
    made = maker(group, known)
    return [made] if made is not None else measured(group, known)


def consumers(module: GraphModule, groups: Sequence[Group]) -> list[str]:
    """Module paths of all layers that tell what any of the groups is worth, in graph order."""
    known = layers(module)
    wanted = {m.module for g in groups for m in judged(g, known)}
    return [path for path in known if path in wanted]
