"""Functions that do several things at once become these things.

baddbmm(b, x, y, beta, alpha)       a product, scaled, and a sum, as attention in diffusers is written
tensor_split(x, (1, 5), dim)        what stands in front of the places, between and behind them, as in MViT of torchvision
"""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch.fx import Graph, Node

from compress.graph.trace.lines import stands_for


def spell_out(graph: Graph) -> None:
    """Replace every such call, in place."""
    for node in list(graph.nodes):
        if node.target in (torch.tensor_split, "tensor_split"):
            _cut_apart(node)
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


def _cut_apart(node: Node) -> None:
    """Parts that are asked for one by one, at places that are given as numbers."""
    given: dict[str, Any] = dict(zip(("input", "indices", "dim"), node.args, strict=False)) | dict(node.kwargs)
    places, dim = given.get("indices", given.get("tensor_indices_or_sections")), given.get("dim", 0)
    picked = all(user.target is operator.getitem and isinstance(user.args[1], int) for user in node.users)
    if (
        not isinstance(places, tuple | list)
        or not all(isinstance(n, int) for n in (*cast("list[Any]", places), dim))
        or not picked
    ):
        return
    ends: list[Any] = [None, *cast("list[Any]", places), None]
    for user in list(node.users):
        number = int(str(user.args[1])) % (len(ends) - 1)
        part = slice(ends[number], ends[number + 1])
        index: Any = (*[slice(None)] * dim, part) if dim >= 0 else (..., part, *[slice(None)] * (-dim - 1))
        user.args = (given["input"], index)
    node.graph.erase_node(node)
