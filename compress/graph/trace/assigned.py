"""`x[:, a:b] = y` as a new tensor: what was in front of the part, the part, and what was behind it.

So the graph holds no tensor that changes, and channels that are written into a tensor of zeros are those of a concatenation.
Writes along one axis, one behind the other, become one concatenation of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Node

Call = Callable[..., Node]
"""Makes a node of a method, or of torch.cat: (name or function, arguments ...)."""
Pieces = dict[Node, tuple[int, list[tuple[int, Node]]]]
"""Nodes that are concatenations -> their axis, and how much of it each part takes."""


def assigned(call: Call, pieces: Pieces, x: Tensor, node: Node, index: Any, value: Any, given: Any) -> Node | None:
    """What `x` is once `x[index] = value` is done.

    Args:
        call: makes a node.
        pieces: of the concatenations so far; a new one is added.
        x: as it is in this run.
        node: that gives x.
        index: whatever stands in the brackets.
        value: a number, or a tensor in this run.
        given: the number, or the node of the tensor.

    Returns:
        The node; None where that is no plain part, such as one with a stride or at places that are computed.
    """
    entries = cast(tuple[Any, ...], index if isinstance(index, tuple) else (index,))
    if len(entries) == 1 and isinstance(entries[0], Tensor):
        return None
    found = _parts(entries, x)
    if found is None:
        return None
    part = _fitted(call, x, node, index, value, given, [one.dim for one in found if one.single])
    steps = [one for one in found if one.step > 1]
    cut = [one for one in found if (one.start, one.stop, one.step) != (0, x.shape[one.dim], 1)]
    if steps:
        (one,) = cut if len(cut) == 1 else (None,)
        return call(torch.slice_scatter, node, part, one.dim, one.start, one.stop, one.step) if one else None
    return _put(call, pieces, node, tuple(x.shape), [(one.dim, one.start, one.stop) for one in cut], part)


def masked(call: Call, x: Tensor, node: Node, mask: Tensor, places: Node, value: Any) -> Node | None:
    """`x[mask] = number`; None for anything else."""
    if mask.dtype is not torch.bool or not isinstance(value, bool | int | float) or mask.shape != x.shape[: mask.ndim]:
        return None
    for _ in range(x.ndim - mask.ndim):
        places = call("unsqueeze", places, -1)
    return call("masked_fill", node, places, value)


@dataclass(frozen=True)
class _Part:
    """What one entry in brackets takes of its axis; `single`: a number, which takes the axis away."""

    dim: int
    start: int
    stop: int
    step: int = 1
    single: bool = False


def _parts(entries: tuple[Any, ...], x: Tensor) -> list[_Part] | None:
    """What the entries take; None where one is neither number nor slice."""
    if any(not isinstance(e, slice) and e is not Ellipsis and type(e) is not int for e in entries):
        return None
    found: list[_Part] = []
    dim = 0
    for e in entries:
        if e is Ellipsis:
            dim += x.ndim - (len(entries) - 1)
            continue
        if isinstance(e, slice):
            start, stop, step = e.indices(x.shape[dim])
            if step < 1 or stop <= start:
                return None
            found.append(_Part(dim, start, stop, step))
        else:
            place = int(e) % x.shape[dim]
            found.append(_Part(dim, place, place + 1, single=True))
        dim += 1
    return found


def _fitted(call: Call, x: Tensor, node: Node, index: Any, value: Any, given: Any, singles: list[int]) -> Node:
    """The value in the shape of the part that it becomes."""
    shape = tuple(x[index].shape)
    if not isinstance(value, Tensor):
        made = call("new_full", node, shape, value)
    else:
        made = call("to", given, x.dtype) if value.dtype != x.dtype else given
        if value.shape != shape:
            for _ in range(value.ndim - len(shape)):
                made = call("squeeze", made, 0)
            made = call("expand", made, *shape)
    for d in singles:
        made = call("unsqueeze", made, d)
    return made


def _put(call: Call, pieces: Pieces, node: Node, shape: tuple[int, ...], parts: list[tuple[int, int, int]], new: Node) -> Node:
    """Put a part in its place, axis by axis."""
    if not parts:
        return new
    (dim, start, stop), *rest = parts
    if rest:
        inner = (*shape[:dim], stop - start, *shape[dim + 1 :])
        new = _put(call, pieces, _cut(call, node, dim, start, stop, shape[dim]), inner, rest, new)
    axis, old = pieces.get(node, (dim, [(shape[dim], node)]))
    if axis != dim:
        old = [(shape[dim], node)]
    before, behind, at = list[tuple[int, Node]](), list[tuple[int, Node]](), 0
    for length, piece in old:
        if at < start:
            end = min(start - at, length)
            before.append((end, _cut(call, piece, dim, 0, end, length)))
        if at + length > stop:
            begin = max(stop - at, 0)
            behind.append((length - begin, _cut(call, piece, dim, begin, length, length)))
        at += length
    every = [*before, (stop - start, new), *behind]
    made = call(torch.cat, [piece for _, piece in every], dim)
    pieces[made] = (dim, every)
    return made


def _cut(call: Call, node: Node, dim: int, start: int, stop: int, length: int) -> Node:
    return node if (start, stop) == (0, length) else call("getitem", node, (*[slice(None)] * dim, slice(start, stop)))
