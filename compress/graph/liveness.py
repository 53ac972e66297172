"""Which values of a graph are still to be read, while its nodes are carried out in order."""

from __future__ import annotations

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
