"""Which values of a graph are still to be read, while its nodes are carried out in order."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch.fx import Graph, Node


class Liveness:
    """Counts the consumers of each node's value that are still to come."""

    def __init__(self, graph: Graph):
        self.left = {node: len(node.users) for node in graph.nodes}

    def consumed(self, node: Node) -> list[Node]:
        """The inputs of a node whose value nobody reads after it; called once for each node, in the order of the graph."""
        over: list[Node] = []
        # all_input_nodes names a source once even where it is read twice, and so does users: the two counts agree.
        for source in node.all_input_nodes:
            self.left[source] -= 1
            if self.left[source] == 0:
                over.append(source)
        return over


def alive_bytes(graph: Graph, order: Iterable[Node]) -> int:
    """Most bytes per sample that are held at once where nodes are carried out in this order, from the shapes noted at tracing."""
    live = Liveness(graph)
    now = most = 0
    for node in order:
        now += value_bytes(node)
        most = max(most, now)
        now -= sum(value_bytes(source) for source in live.consumed(node))
    return most


def value_bytes(node: Node) -> int:
    """Bytes per sample of a node's value."""
    return _bytes(node.meta.get("shape"))


def _bytes(shape: Any) -> int:
    if isinstance(shape, tuple | list):
        if all(isinstance(n, int) for n in shape):
            # 4 bytes of float32; the batch is left out.
            return 4 * math.prod(shape[1:])
        return sum(_bytes(s) for s in shape)
    return sum(_bytes(s) for s in shape.values()) if isinstance(shape, dict) else 0
