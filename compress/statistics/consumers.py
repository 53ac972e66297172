"""Which layers consume a group of channels in a way that regression understands: those whose moments a pass has to take."""

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


def consumers(module: GraphModule, groups: Sequence[Group]) -> list[str]:
    """Module paths of all measured consumers, in graph order."""
    known = layers(module)
    wanted = {m.module for g in groups for m in measured(g, known)}
    return [path for path in known if path in wanted]
