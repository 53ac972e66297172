"""Rules for operations without parameters: what each of them does to channel atoms.

A rule takes the solver's state, the node and the values that reach it (atom tensors in place of activations, everything else as
it is) and gives the node's value. Pure data movement has no rule: the real operation is called on the atoms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from compress.graph.channels.atom_state import Shared, Sized, State, argument, of_tables, shaped, tensors_in, unknown, where
from compress.graph.channels.atoms import along, varies, varying

# ---- elementwise, reductions -----------------------------------------------------------------------------------------------


def elementwise(s: State, node: Node, operands: Sequence[Tensor]) -> Any:
    """Atoms that meet are united; an operand that is broadcast over channels stays whole itself."""
    if len(operands) == 1:
        return operands[0]
    shape = operands[0].shape
    if any(t.shape != shape for t in operands):
        shape = np.broadcast_shapes(*(t.shape for t in operands))  # that of torch takes twenty times as long
    full = [t for t in operands if t.shape == shape] or _product(s, shape, operands)
    if not full:
        return unknown(s, node, operands, "broadcasts all of its operands")
    # The operand that varies least, so that what is broadcast in it is seen; constants (no axis) come last.
    main = full[0] if len(full) == 1 else min(full, key=lambda t: len(varying(t)) or t.ndim + 1)
    narrow = [t for t in operands if t.shape != shape]
    axes = varying(main) if narrow else []
    for other in operands:
        if other.shape == shape and other is not main:
            s.atoms.unite(main, other)
    for other in narrow:
        s.share(Shared(main, other, axes, f"{where(node)} broadcasts it over channels"))
    return main


_FOLLOWED = 2**16
"""Entries of a table that two vectors make; larger ones are masks."""


def _product(s: State, shape: Sequence[int], operands: Sequence[Tensor]) -> list[Tensor]:
    """Fresh atoms where no operand is as large as the result: one for each combination of theirs."""
    axes = {d + len(shape) - t.ndim for t in operands for d in varying(t)}
    sizes = [n if d in axes else 1 for d, n in enumerate(shape)]
    return [s.atoms.new(prod(sizes)).view(sizes).expand(tuple(shape))] if prod(sizes) <= _FOLLOWED else []


def reduced(s: State, node: Node, x: Tensor, dims: Sequence[int], why: str = "reduces over channels") -> Any:
    """A mean, sum, maximum or pooling over `dims`; the other axes keep their atoms.

    Where channels lie along one of those and along another axis (branches that are stacked and added up), what is added up goes
    together.
    """
    if mixed := [d for d in dims if varies(x, d)]:
        if all(d in dims for d in varying(x)):
            return unknown(s, node, [x], why)
        x = s.atoms.unite_along(x, mixed)
    # A view of one entry per reduced axis; which one is chosen does not matter, as they are equal.
    slim = x
    for d in dims:
        slim = slim.narrow(d, 0, 1)
    return _in_shape(slim, node.meta["shape"])


def _in_shape(slim: Tensor, shape: Any) -> Any:
    if shape and not all(isinstance(n, int) for n in shape):  # values and their places
        return tuple(_in_shape(slim, part) for part in shape)
    # keepdim, or pooling to several positions.
    if len(shape) == slim.ndim:
        return slim.expand(tuple(shape))
    return slim.reshape(shape)


def spatial(s: State, node: Node, x: Tensor) -> Tensor:
    # per_channel, because an image as model input has one atom for all, and a reshaped one may have several.
    """Pooling, resizing and padding: whatever happens within a channel, on axes behind it."""
    return shaped(s.atoms.per_channel(x, 1), node.meta["shape"], 1)


def sampled(s: State, node: Node, x: Tensor, grid: Tensor) -> Tensor:
    """grid_sample: every channel is read at the same places, which stay as they are."""
    s.atoms.freeze(grid, f"{where(node)} reads at these places")
    return spatial(s, node, x)


def padded(s: State, node: Node, x: Tensor, pad: Sequence[int], mode: str) -> Any:
    """Padding in space keeps channels; padded channels are constants that have no producer, so they stay.

    Where channels lie along another axis, too (heads that get a column of ones), what is padded goes with all that it is put to.
    """
    # F.pad counts axes from the last one, two numbers each.
    dims = [x.ndim - 1 - i // 2 for i in range(0, len(pad), 2) if pad[i] or pad[i + 1]]
    if not any(varies(x, d) for d in dims):
        return reduced(s, node, x, dims)
    if mode != "constant" or min(pad) < 0:
        return unknown(s, node, [x], "pads or crops channels other than by constants")
    if not set(varying(x)) <= set(dims):
        slim = s.atoms.unite_along(x, dims)
        for d in dims:
            slim = slim.narrow(d, 0, 1)
        return slim.expand(tuple(node.meta["shape"]))
    fill = s.atoms.new(1)
    s.atoms.freeze(fill, f"{where(node)} pads with constant channels")
    # The fill value is an atom, so padded channels get an identity of their own.
    return F.pad(x, list(pad), value=int(fill))


# ---- cutting, joining, moving ----------------------------------------------------------------------------------------------


def sized(s: State, node: Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], call: Callable[[], Any]) -> Any:
    """Data movement with sizes among its arguments."""
    out = call()
    x: Tensor = tensors_in((args, kwargs))[0]
    s.sized[node.name] = Sized(x, out if isinstance(out, Tensor) else x, args, kwargs)
    # Removing channels must leave a reshaped tensor rectangular; close settles that when all edges are known.
    s.rectangles.extend(tensors_in(out))
    if not isinstance(out, Tensor):
        s.pieces.extend(tensors_in(out))
    return out


def expanded(s: State, node: Node, x: Tensor, sizes: Any) -> Tensor | None:
    """One entry for all that is given the sizes of another tensor: along that one's channels it stays, as a gate of one map does.

    Args:
        s: the solver's state.
        node: the call.
        x: what is expanded.
        sizes: the other tensor, or one node or several that give sizes.

    Returns:
        What comes out, one atom for each of those channels; None where no size is known to count channels, or x has some itself.
    """
    shape = tuple(node.meta["shape"])
    if isinstance(sizes, Tensor):
        counts = [[(sizes, d)] for d in range(sizes.ndim)]
    elif isinstance(sizes, Node):
        counts = s.shapes.get(sizes, [])
    else:
        counts = [s.counts.get(size, []) if isinstance(size, Node) else [] for size in sizes]
    if len(counts) != len(shape) or varying(x):
        return None
    for axis, found in enumerate(counts):
        of, dim = found[0] if len(found) == 1 else ("", 0)
        if isinstance(of, Tensor) and varying(of) == [dim] and of.shape[dim] == shape[axis]:
            s.atoms.freeze(x, f"{where(node)} broadcasts it over channels")
            return shaped(along(of, dim), shape, axis)
    return None


def shaped_as(s: State, x: Tensor, other: Tensor) -> Tensor:
    """A reshape whose sizes are those of another tensor: both lose the same channels."""
    out = x.reshape(other.shape)
    s.rectangles.append(out)
    s.atoms.unite(out, other)
    return out


def repeated(s: State, node: Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Every entry of an axis several times, as a key head serves several query heads."""
    repeats, dim = argument(args, kwargs, 1, "repeats"), argument(args, kwargs, 2, "dim")
    if dim is None or not isinstance(repeats, int) or kwargs.get("output_size") is not None:
        return unknown(s, node, tensors_in((args, kwargs)), "repeats entries in a way that is not followed")
    return torch.repeat_interleave(*args, **kwargs)


def unbound(s: State, node: Node, x: Tensor, dim: int) -> tuple[Tensor, ...]:
    """Single entries of one axis."""
    s.single.append((x, dim % x.ndim, f"{where(node)} takes single entries along the channels"))
    return x.unbind(dim)


def picked(s: State, node: Node, x: Tensor, index: Any) -> Any:
    """x[...]: whole axes and plain slices follow their channels; a single entry or a stride must not lose its place."""
    entries: tuple[Any, ...] = index if isinstance(index, tuple) else (index,)
    found = tensors_in(entries)
    if len(found) == 1 and all(isinstance(i, Tensor) or i in (slice(None), Ellipsis) for i in entries):
        before = next(n for n, i in enumerate(entries) if isinstance(i, Tensor))
        return looked_up(s, node, x, found[0], before if Ellipsis not in entries[:before] else x.ndim - len(entries) + before)
    if found or not all(isinstance(i, int | slice) or i is None or i is Ellipsis for i in entries):
        return unknown(s, node, [x, *found], "is indexed by a tensor")
    dim, written = 0, node.args[1]
    for i, given in zip(entries, written if isinstance(written, tuple) else (written,), strict=True):
        if i is Ellipsis:
            dim += x.ndim - sum(isinstance(k, int | slice) for k in entries)
        elif i is not None:
            if isinstance(given, slice) and _follows_places(s, given):
                s.single.append((x, dim, f"{where(node)} takes as many as the input has places"))
            plain = isinstance(i, slice) and i.step in (None, 1)
            # Either one entry (its place is written in the code) or a stride, which would pick others after removal.
            if not plain and i != slice(None):
                s.single.append((x, dim, f"{where(node)} takes single entries along the channels"))
            dim += 1
    out = x[index]
    s.sized[node.name] = Sized(x, out, (x, index), {})
    s.pieces.append(out)
    return out


def _follows_places(s: State, part: Any) -> bool:
    """Whether the end of a slice is computed from a size of the input, and not from a number of channels."""
    ends = [end for end in (part.start, part.stop) if isinstance(end, Node)]
    return any(not any(isinstance(of, str) or varies(of, d) for of, d in s.counts.get(end, [("", 0)])) for end in ends)


def looked_up(s: State, node: Node, x: Tensor, index: Tensor, dim: int) -> Any:
    """Whole slices of an axis, chosen by places that are the same for all channels.

    A table of parameters is read by rows: these are positions, and its columns may be channels.
    """
    table = node.all_input_nodes[0].op == "get_attr"
    if varies(x, dim) and not table:
        return unknown(s, node, [x, index], "is indexed by a tensor")
    s.atoms.freeze(index, f"{where(node)} looks up entries by it")
    rows = (s.atoms.unite_along(x, [dim]) if table else x).narrow(dim, 0, 1)
    # an index of several axes stands in the place of the one that it looks up
    for _ in range(index.ndim - 1):
        rows = rows.unsqueeze(dim)
    return rows.expand(tuple(node.meta["shape"]))


def joined(s: State, node: Node, parts: Sequence[Tensor], dim: int, new_axis: bool) -> Tensor:
    """Concatenation, and stacking on a new axis."""
    if not new_axis:  # torch passes over a vector without entries, such as a cache that is empty
        parts = [p for p in parts if p.shape != (0,)] or parts
    axis = dim % (parts[0].ndim + new_axis)
    if new_axis:
        parts = [p.unsqueeze(axis) for p in parts]
    shape = tuple(node.meta["shape"])
    inside = any(varies(p, axis) for p in parts) or new_axis
    across = any(varies(p, d) for p in parts for d in range(p.ndim) if d != axis)
    # As wide as the sum of the parts: concatenated channels keep atoms of their own.
    if across and not inside:
        # Joined along another axis than their channels (a class token before the others): they keep the same channels.
        first = parts[0].narrow(axis, 0, 1)
        for p in parts[1:]:
            s.atoms.unite(first, p)
        return first.expand(shape)
    # Both axes vary: kept as a full tensor, which is rare enough to be affordable.
    if across:
        out = torch.cat(list(parts), axis)
        s.rectangles.append(out)
        return out
    return shaped(torch.cat([along(p, axis) for p in parts]), shape, axis)


def pixels(s: State, x: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
    """Pixel shuffle: channels become positions, so those that make one channel go together."""
    out = move(x)
    s.rectangles.append(out)
    return out


def shuffled(s: State, x: Tensor, groups: int) -> Tensor:
    """Channel shuffle: (groups, n) -> (n, groups); it stays rectangular."""
    # (groups, n): which of the two axes stays free is decided in propagation._rectangular.
    split = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
    s.rectangles.append(split)
    return split.transpose(1, 2).reshape(x.shape)


def gated(s: State, x: Tensor, dim: int) -> Tensor:
    """GLU: both halves of an axis go together."""
    half, gate = x.chunk(2, dim)
    s.atoms.unite(half, gate)
    return half


def windows(s: State, node: Node, x: Tensor) -> Tensor:
    """Unfold: (samples, channels, ...) -> (samples, channels * places of a window, windows)."""
    channels, shape = s.atoms.per_channel(x, 1), tuple(node.meta["shape"])
    return shaped(channels.repeat_interleave(shape[-2] // len(channels)), shape, len(shape) - 2)


def folded(s: State, node: Node, x: Tensor) -> Tensor:
    """Fold, which adds windows up: all places of a channel's window go together."""
    shape = tuple(node.meta["shape"])
    per_window = s.atoms.per_channel(x, 1).view(shape[1], -1)
    s.atoms.unite(per_window, per_window[:, :1].clone())
    return shaped(per_window[:, 0], shape, 1)


def scattered(s: State, node: Node, x: Tensor, part: Tensor, dim: int) -> Any:
    """A part of an axis, at a stride, is another tensor from here on: positions, not channels."""
    if of_tables(node.all_input_nodes[0]):  # zeros that are written over, and no channels along any axis
        x = s.atoms.unite_along(x, [dim])
    if varies(x, dim) or varies(part, dim):
        return unknown(s, node, [x, part], "takes single entries along the channels")
    one = x.narrow(dim, 0, 1)
    s.atoms.unite(one, part.narrow(dim, 0, 1))
    return one.expand(x.shape)


def slid(s: State, node: Node, x: Tensor, dim: int) -> Any:
    """x.unfold(dim, size, step): a new last axis for the places of a window along an axis."""
    if varies(x, dim):
        return unknown(s, node, [x], "takes windows of channels")
    return x.narrow(dim, 0, 1).unsqueeze(-1).expand(tuple(node.meta["shape"]))
