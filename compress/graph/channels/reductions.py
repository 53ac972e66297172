"""Rules for operations that reduce, compare or look up entries along axes: channels on all other axes pass.

What they give may be several tensors (values and their places), each of a shape of its own; the noted shapes say which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.fx import Node

from compress.graph.channels import op_rules
from compress.graph.channels.atom_state import Sized, State, argument, shaped, tensors_in, unknown, where
from compress.graph.channels.atoms import varies, varying

_BEHIND_ANOTHER = frozenset({"norm", "vector_norm", "matrix_norm", "topk", "kthvalue", "quantile", "nanquantile"})
"""Their axes are the third argument: an order, a number or a fraction stands before them."""
_LAST_BY_DEFAULT = frozenset({"topk", "kthvalue", "sort", "argsort", "mode"})


def axes(x: Tensor, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[int]:
    """The axes that a reduction or a selection of this name runs over; all of them where none is named."""
    position = 2 if name in _BEHIND_ANOTHER else 1
    dims = args[position] if len(args) > position else kwargs.get("dim", kwargs.get("axis"))
    # torch.std(x, True) is the flag of Bessel's correction, and bool is an int in Python.
    if isinstance(dims, bool):
        raise TypeError("a flag in place of the axes")
    if dims is None:
        dims = (-2, -1) if name == "matrix_norm" else -1 if name in _LAST_BY_DEFAULT else range(x.ndim)
    return [d % x.ndim for d in ([dims] if isinstance(dims, int) else dims)]


def reduction(s: State, node: Node, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A sum, a mean, a norm, a variance: one number, or two, for all entries along the axes."""
    found = tensors_in((args, kwargs))
    if len(found) > 1:  # quantiles at places that are computed
        return unknown(s, node, found)
    (x,), dims = found, axes(found[0], name, args, kwargs)
    channels = varying(x)
    if not _leaves_zeros_out(name, args, kwargs):
        return op_rules.reduced(s, node, x, dims)
    if len(channels) == 1 and channels[0] in dims:
        return _over_channels(s, node, x, channels[0], name)
    if len(channels) > 1 and dims == [x.ndim - 1] == channels[-1:]:  # each head has a statistic of its own
        if node.name in s.inside:
            return _over_channels(s, node, x, dims[0], name)
        s.heads[node.name] = s.atoms.unite_along(x, dims)
    return op_rules.reduced(s, node, x, dims)


def _leaves_zeros_out(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether entries of zero change nothing: not so for norms of order 0 or less, where one zero decides."""
    if name not in ("norm", "vector_norm"):
        return name in ("mean", "sum")
    order = args[1] if len(args) > 1 else kwargs.get("p", kwargs.get("ord"))
    return order in (None, "fro") or (isinstance(order, int | float) and order > 0)


def _over_channels(s: State, node: Node, x: Tensor, axis: int, name: str, source: Node | None = None) -> Any:
    """A sum, a mean or a norm over all channels: those that go count as zeros, as in the statistics of a norm."""
    channels = s.atoms.per_channel(x, axis)
    if name != "normalize":
        s.summed.add(node.name)
    s.zeroed.append((channels, source or node.all_input_nodes[0], f"{where(node)} reduces over channels"))
    if name == "mean":  # of as many as there were
        s.sized[node.name] = Sized(x, x, (), {})
    return s.atoms.new(1).view(()).expand(tuple(node.meta["shape"]))


def normalized(s: State, node: Node, x: Tensor, axis: int) -> Any:
    """Divided by the norm of all channels, in which those that go count as zeros."""
    _over_channels(s, node, x, axis, "normalize")
    return shaped(s.atoms.per_channel(x, axis), x.shape, axis)


def cosine(s: State, node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The cosine of two vectors of channels: a sum of products and two norms, all of them the same without zeros."""
    pair, axis = tensors_in((args, kwargs)), argument(args, kwargs, 2, "dim", 1)
    if any(varying(t) != [axis % t.ndim] for t in pair) or pair[0].ndim != pair[1].ndim:
        return unknown(s, node, pair, "compares channels in a way that is not followed")
    for t, source in zip(pair, node.all_input_nodes, strict=False):
        _over_channels(s, node, t, axis, "norm", source)
    s.atoms.unite(*(s.atoms.per_channel(t, axis) for t in pair))
    return s.atoms.new(1).view(()).expand(tuple(node.meta["shape"]))


def fourier(s: State, node: Node, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A transform along some axes, whose lengths it may change: each channel on another axis for itself."""
    name = name.removeprefix("fft_")
    x = argument(args, kwargs, 0, "input")
    sizes, dims = (None, argument(args, kwargs, 1, "dim")) if "shift" in name else (args[1:2], argument(args, kwargs, 2, "dim"))
    if dims is None:
        sizes = next(iter(sizes or ()), kwargs.get("s"))
        several = range(-len(sizes), 0) if isinstance(sizes, tuple | list) else range(x.ndim)
        dims = several if name.endswith("n") or "shift" in name else (-2, -1) if name.endswith("2") else -1
    return op_rules.reduced(s, node, x, [d % x.ndim for d in ([dims] if isinstance(dims, int) else dims)], "mixes channels")


def of_complex(s: State, node: Node, x: Tensor) -> Any:
    """Pairs of numbers become complex ones, or these become pairs, or one of the two."""
    shape = node.meta["shape"]
    if len(shape) < x.ndim:
        return op_rules.reduced(s, node, x, [x.ndim - 1], "makes a number of two channels")
    return x if len(shape) == x.ndim else x.unsqueeze(-1).expand(tuple(shape))


def selection(s: State, node: Node, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Some entries along an axis, or their places, by their order: each channel orders its own."""
    found = tensors_in((args, kwargs))
    if len(found) == 2 and name in ("max", "min"):
        return op_rules.elementwise(s, node, found)
    (x,) = found
    return op_rules.reduced(s, node, x, axes(x, name, args, kwargs), "compares channels with each other")


def gathered(s: State, node: Node, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Entries along an axis by places that are computed: gather(x, dim, index), take_along_dim(x, index, dim)."""
    found = tensors_in((args, kwargs))
    x, index = found
    numbers = [a for a in args[1:] if isinstance(a, int)] or [kwargs["dim"]]
    dim = numbers[0] % x.ndim
    if name == "index_select":
        return op_rules.looked_up(s, node, x, index, dim)
    # Other axes must be of the same sizes: gather takes a part of an axis that is longer in x.
    fits = index.ndim == x.ndim and all(index.shape[d] == x.shape[d] for d in range(x.ndim) if d != dim)
    if not fits or varies(x, dim) or varies(index, dim):
        return unknown(s, node, found, "looks up entries of channels")
    one = x.narrow(dim, 0, 1)
    s.atoms.unite(one, index.narrow(dim, 0, 1))
    return one.expand(index.shape)
