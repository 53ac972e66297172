"""Running statistics of the norms behind what has lost inputs and could not be refitted.

A refitted layer gives what it gave before, and so do the norms behind it: to take their statistics anew would only move them. A
convolution that regression does not know (its weights are shared, or stand in the graph themselves) gives something else once
channels that it read are gone. The next norm can at least bring mean and variance of each channel back:

    running mean = E x    running variance = Var x        over images and positions, x as the smaller model computes it
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from compress.graph.merge.layer_maps import BATCH_NORMS
from compress.graph.operations import FUNCTIONAL_CONVOLUTIONS
from compress.ranks import ALONE, Ranks
from compress.statistics.layers import LAYERS, columns


def reads_less(dense: GraphModule, small: GraphModule, node: Node) -> bool:
    """Whether an operation with weights reads fewer channels than in the dense model."""
    if node.op == "call_module":
        before, now = (m.get_submodule(str(node.target)) for m in (dense, small))
        return isinstance(before, LAYERS) and columns(before) != columns(now)
    if node.op != "call_function" or node.target not in (*FUNCTIONAL_CONVOLUTIONS, F.linear):
        return False
    weight = node.args[1] if len(node.args) > 1 else node.kwargs["weight"]
    if not isinstance(weight, Node) or weight.op != "get_attr":
        return False
    return _held(dense, weight).shape[1] != _held(small, weight).shape[1]


def _held(module: nn.Module, node: Node) -> Tensor:
    return functools.reduce(getattr, str(node.target).split("."), cast(Any, module))


def running(module: GraphModule, node: Node) -> Any:
    """The norm at a node, if it is called once and has running statistics."""
    if node.op != "call_module" or type(norm := cast(Any, module.get_submodule(str(node.target)))) not in BATCH_NORMS:
        return None
    # Two calls would need two statistics.
    calls = sum(n.op == "call_module" and n.target == node.target for n in module.graph.nodes)
    return norm if calls == 1 and norm.running_mean is not None else None


def recalibrate(norm: Any, values: Iterable[Tensor], ranks: Ranks = ALONE) -> None:
    """Take a norm's running statistics from its inputs, one tensor (n, c, ...) per batch of this process."""
    moments, seen = torch.zeros(2, norm.num_features, dtype=torch.float64), 0
    # Sums in float64: the variance is a difference of two large numbers.
    for x in values:
        rows = x.movedim(1, 0).flatten(1)
        moments = moments + torch.stack([rows.sum(1), rows.square().sum(1)]).double().cpu()
        seen += rows.shape[1]
    mean, square = ranks.summed(moments) / sum(ranks.gathered(seen))
    # New buffers: the old ones may be those of the model as it was.
    norm.running_mean = mean.to(norm.running_mean)
    norm.running_var = (square - mean.square()).clamp_min(0).to(norm.running_var)
