"""Functions that do several things at once become these things: `baddbmm` is a product, scaled, and a sum."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

from compress.graph.trace.lines import stands_for


def spell_out(graph: Graph) -> None:
    """Replace every `torch.baddbmm(b, x, y, beta=1, alpha=1)`, as attention in diffusers is written, in place."""
    for node in list(graph.nodes):
        if node.target not in (torch.baddbmm, "baddbmm") or len(node.args) < 3 or not _plain(node.kwargs):
            continue
        added, x, y = node.args[:3]

        def call(target: Any, *args: Any, of: Node = node) -> Node:
            with of.graph.inserting_before(of):
                made = of.graph.call_function(target, args)
            stands_for(made, of)
            return made

        beta, alpha = node.kwargs.get("beta", 1), node.kwargs.get("alpha", 1)
        made = call(torch.matmul, x, y)
        made = made if alpha == 1 else call(operator.mul, made, alpha)
        if beta != 0:  # of nothing, whatever is in it
            made = call(operator.add, made, added if beta == 1 else call(operator.mul, added, beta))
        node.replace_all_uses_with(made)
        graph.erase_node(node)
        if isinstance(added, Node) and not added.users and added.op != "placeholder":
            graph.erase_node(added)


def _plain(kwargs: Any) -> bool:
    return kwargs.keys() <= {"beta", "alpha"} and all(isinstance(v, int | float) for v in kwargs.values())
