"""Rules for layers that are called as functions, on tensors of the graph.

A weight is a parameter of the graph, by name, or computed from parameters (`computed_weights`). A vector that is computed (a bias
that is a concatenation) has atoms of its own, as any activation has, and an entry for each channel that the layer makes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from compress.graph.channels import computed_weights, layer_rules
from compress.graph.channels.atom_state import Sized, State, argument, tensors_in, unknown, where
from compress.graph.channels.atoms import along, varies, varying

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]


def layer(s: State, node: Node, args: Args, kwargs: Kwargs) -> Any:
    """F.linear and the convolutions."""
    weight, bias = _tensor_name(node, 1, "weight"), _tensor_name(node, 2, "bias")
    x, w = argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "weight")
    computed = s.computed.get(node)
    if not weight and computed is None:
        if node.target is F.linear and layer_rules.mixes_positions(x):
            for table in tensors_in((args[1:], kwargs)):
                s.atoms.freeze(table, f"{where(node)} mixes positions, not channels")
            return x.narrow(-1, 0, 1).expand(*x.shape[:-1], w.shape[0])
        return unknown(s, node, tensors_in((args, kwargs)), "has weights that are computed")
    name = weight or computed_weights.name(node)
    if node.target is F.linear:
        out = layer_rules.linear(s, node, x, name, bias or None, w.shape[0])
    else:
        groups = argument(args, kwargs, 6, "groups", 1)
        out = layer_rules.convolution(s, node, x, name, bias or None, (w.shape[0], groups, w.ndim), False)
        if name not in s.thin:
            # The number of groups is an argument here; a module's is counted again in surgery.remove.
            s.sized[node.name] = Sized(x, out, args, kwargs)
    if computed is not None:
        computed_weights.follow(s, node, computed)
    if bias == "":
        _belongs(s, node, out, -1 if node.target is F.linear else 1, [argument(args, kwargs, 2, "bias")])
    return out


def norm(s: State, node: Node, args: Args, kwargs: Kwargs) -> Any:
    """F.layer_norm and F.batch_norm."""
    last = node.target is F.layer_norm
    names = {"weight": 2, "bias": 3} if last else {"running_mean": 1, "running_var": 2, "weight": 3, "bias": 4}
    tensors = [t for t in (_tensor_name(node, i, n) for n, i in names.items()) if t]
    computed = [argument(args, kwargs, i, n) for n, i in names.items() if _tensor_name(node, i, n) == ""]
    if last:
        dims = len(argument(args, kwargs, 1, "normalized_shape"))
        out = layer_rules.layer_norm(s, node, args[0], tensors, dims)
    else:
        out = layer_rules.per_channel_norm(s, node, args[0], tensors, 0)
    _belongs(s, node, out, -1 if last else 1, computed)
    return out


def prelu(s: State, node: Node, args: Args, kwargs: Kwargs) -> Any:
    """F.prelu."""
    weight, slopes = _tensor_name(node, 1, "weight"), argument(args, kwargs, 1, "weight")
    if weight:
        return layer_rules.prelu(s, node, args[0], weight, slopes.numel())
    _belongs(s, node, args[0], 1, [slopes])
    return args[0]


def _tensor_name(node: Node, position: int, name: str) -> str | None:
    """The state_dict name of a parameter that is an argument of a functional layer; '' where it is computed."""
    given = argument(node.args, node.kwargs, position, name)
    if given is None:
        return None
    # '' and None differ: a missing bias is fine, a computed one has atoms of its own
    return str(given.target) if isinstance(given, Node) and given.op == "get_attr" else ""


def _belongs(s: State, node: Node, out: Tensor, axis: int, vectors: Sequence[Tensor]) -> None:
    """Computed vectors with an entry for each channel: an entry goes with its channel."""
    # Channels on another axis (a token mixer, a norm of each head): the vector serves all of them.
    elsewhere = not varies(out, axis) and bool(varying(out))
    for vector in vectors:
        if elsewhere or vector.shape != (out.shape[axis],):
            s.atoms.freeze(vector, f"{where(node)} shares it among channels")
        else:
            s.atoms.unite(along(out, axis), vector)
