"""Blocks of a model: spans between points through which everything flows.

A node is a cut if after it nothing else is still to be read: whatever comes later follows from its value alone. A block ends
at the first cut behind at least two layers, so that there is something that a layer-by-layer fit could not do. In a residual
net these are the sums, elsewhere every second layer or so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from compress.graph.liveness import Liveness
from compress.refit.tape import transparent
from compress.refit.walk import Kept
from compress.statistics.layers import Layer, layers

_LAYERS_PER_BLOCK = 2


@dataclass(frozen=True)
class Block:
    """A span of nodes.

    Attributes:
        nodes: names in graph order, the last one is the exit.
        channels: positions of the dense exit's channels that the smaller model still has; None for all.
        channel_dim: axis of the channels at the exit.
    """

    nodes: tuple[str, ...]
    channels: Tensor | None
    channel_dim: int

    @property
    def exit(self) -> str:
        """Name of the node whose value both models are compared at."""
        return self.nodes[-1]


def blocks(module: GraphModule, kept: Mapping[str, Kept]) -> list[Block]:
    """The blocks of a folded model, in order; what is left behind the last one is not part of any."""
    known = {name: one for one in layers(module).values() for name in one.nodes}
    nodes = [n for n in module.graph.nodes if n.op not in ("placeholder", "output")]
    cuts = _cuts(module)
    found: list[Block] = []
    span: list[str] = []
    inside = 0
    for node, following in zip(nodes, [*nodes[1:], None], strict=True):
        span.append(node.name)
        inside += node.name in known
        # Transparent nodes behind a cut belong to the block before them: nothing is fitted there.
        if node.name not in cuts or inside < _LAYERS_PER_BLOCK or (following is not None and transparent(module, following)):
            continue
        origin = _origin(module, node, known)
        # Without a known layer the channels of the exit cannot be matched with the dense model's.
        if origin is None:
            continue
        positions = kept[origin.path].outputs
        whole = len(positions) == origin.outputs
        found.append(Block(tuple(span), None if whole else positions, -1 if origin.linear else 1))
        span, inside = [], 0
    return found


def _cuts(module: nn.Module) -> set[str]:
    """Nodes after which only their own value is still to be read."""
    graph = module.graph
    assert isinstance(graph, torch.fx.Graph), "blocks are those of a traced model"
    live = Liveness(graph)
    alive: set[Node] = set()
    cuts: set[str] = set()
    for node in graph.nodes:
        # Parameters in the graph are always there, and no value that flows.
        if node.op == "get_attr":
            continue
        alive.difference_update(live.consumed(node))
        if node.users:
            alive.add(node)
        if node.op not in ("placeholder", "output") and alive == {node}:
            cuts.add(node.name)
    return cuts


def _origin(module: GraphModule, node: Node, known: Mapping[str, Layer]) -> Layer | None:
    """The layer whose output channels a value has, looked for behind sums and identities only."""
    while node.name not in known:
        sources = node.all_input_nodes
        is_sum = (
            node.op != "call_module" and len(sources) == 2 and all(s.meta.get("shape") == node.meta.get("shape") for s in sources)
        )
        if not is_sum and not transparent(module, node):
            return None
        # Of a sum either operand will do: both have the same channels.
        node = next((s for s in sources if s.name in known or transparent(module, s)), sources[0])
    return known[node.name]


def spans(found: Sequence[Block], width: int) -> list[tuple[Block, ...]]:
    """Overlapping runs of blocks: each block with the next `width` - 1 ones. The last run reaches the end."""
    last = max(1, len(found) - width + 1)
    return [tuple(found[i : i + width]) for i in range(last)] if found else []
