"""Rules for products of activations: by matmul, and attention as one operation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.fx import Node

from compress.graph.channels.atom_state import Sized, State, argument, shaped, tensors_in, unknown, where
from compress.graph.channels.atoms import along, varies, varying


def matmul(s: State, node: Node, a: Tensor, b: Tensor) -> Any:
    """(..., i, k) @ (..., k, j). Contracting channels (q k^T) ties those of a head, which goes whole, or those of all heads."""
    shape = tuple(node.meta["shape"])
    if min(a.ndim, b.ndim) < 2:
        return unknown(s, node, [a, b], "multiplies by a vector")
    if (passing := _beside_channels(s, node, a, b)) is not None:
        return passing
    # A sum over channels: both sides must lose the same.
    if varies(a, -1) or varies(b, -2):
        if node.name in s.inside:
            return _contracted(s, node, a, b.transpose(-1, -2))
        rep_a = s.atoms.unite_along(a, [a.ndim - 2, a.ndim - 1]).narrow(-2, 0, 1).narrow(-1, 0, 1)
        rep_b = s.atoms.unite_along(b, [b.ndim - 2, b.ndim - 1]).narrow(-2, 0, 1).narrow(-1, 0, 1)
        s.atoms.unite(rep_a, rep_b)
        # the one with more entries has the heads, the other is shared among them
        heads = rep_a if rep_a.numel() >= rep_b.numel() else rep_b
        s.heads[node.name] = heads
        return heads.expand(shape)
    if varies(a, -2) and varies(b, -1):
        return _crossed(s, node, a, b)
    # One side has channels that pass, the other mixes positions (attention weights times values).
    rows = varies(a, -2)
    wide, weights = (a.narrow(-1, 0, 1), b) if rows else (b.narrow(-2, 0, 1), a)
    wide = wide.expand(shape)
    if node.name in s.inside:
        s.atoms.freeze(weights, f"{where(node)} shares it among the channels of all heads")
        return shaped(s.atoms.per_channel(wide, -2 if rows else -1), shape, len(shape) - 1 - rows)
    # Heads of the weights are coupled with those of the values.
    s.atoms.unite(weights.narrow(-2, 0, 1).narrow(-1, 0, 1).expand(*shape[:-2], 1, 1), wide)
    if rows or varies(wide, -1):
        s.heads[node.name] = wide
    return wide


def _beside_channels(s: State, node: Node, a: Tensor, b: Tensor) -> Tensor | None:
    """A sum over channels of one side alone, whose other side has channels that pass: those that are summed stay."""
    shape = tuple(node.meta["shape"])
    # What the other has along the sum are positions; heads, which go as a whole, have channels on both sides.
    for one, other, axis in ((a, b, -1), (b, a, -2)):
        if varying(one) == [one.ndim + axis] and varying(other) == [other.ndim + axis]:
            s.atoms.freeze(one, f"{where(node)} sums its channels over positions")
            return shaped(along(other, axis), shape, len(shape) + axis)
    return None


def _crossed(s: State, node: Node, a: Tensor, b: Tensor) -> Tensor:
    """A number for each channel of one side with each of the other, as in attention between channels: heads go as a whole.

    Without heads the side with fewer channels keeps them, and those of the other pass.
    """
    shape = tuple(node.meta["shape"])
    heads = [s.atoms.unite_along(t, [t.ndim - 2, t.ndim - 1]).narrow(-2, 0, 1).narrow(-1, 0, 1) for t in _with_heads(a, b)]
    if heads:
        s.atoms.unite(*heads)
        return max(heads, key=Tensor.numel).expand(shape)
    rows = a.shape[-2] >= b.shape[-1]
    passes, stays, axis = (a, b, -2) if rows else (b, a, -1)
    s.atoms.freeze(stays, f"{where(node)} multiplies channels by channels")
    return shaped(s.atoms.per_channel(passes, axis), shape, len(shape) + axis)


def _with_heads(a: Tensor, b: Tensor) -> list[Tensor]:
    """Both operands where both have channels on an axis in front of the last two; else none."""
    both = [any(d < t.ndim - 2 for d in varying(t)) for t in (a, b)]
    return [a, b] if all(both) else []


def attention(s: State, node: Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """softmax(q k^T + mask) v, all (..., tokens, head dimension): the classes are whole heads, or the same channels of all heads.

    Where a key head serves several query heads these go together.
    """
    q, k, v, mask = (argument(args, kwargs, i, n) for i, n in enumerate(("query", "key", "value", "attn_mask")))
    if q.shape[:-3] != k.shape[:-3] or k.shape[:-2] != v.shape[:-2]:
        return unknown(s, node, [q, k, v, *tensors_in(mask)], "shares keys among heads")
    shape = tuple(node.meta["shape"])
    lead = "ABCDEFGH"[: q.ndim - 2]
    s.products[node.name] = [[(f"{lead}td", q), (f"{lead}sd", k)], [(f"{lead}t", q.select(-1, 0)), (f"{lead}se", v)]]
    if node.name in s.inside:
        _contracted(s, node, q, k)
        s.sized[node.name] = Sized(q, q, args, kwargs)  # divides by the root of how many there are
        s.atoms.freeze(mask, f"{where(node)} shares the mask among heads") if isinstance(mask, Tensor) else None
        return shaped(s.atoms.per_channel(v, -1), shape, len(shape) - 1)
    heads = s.atoms.unite_along(q, [q.ndim - 2, q.ndim - 1]).narrow(-2, 0, 1).narrow(-1, 0, 1)
    for t in (s.atoms.unite_along(k, [k.ndim - 2, k.ndim - 1]), v):
        s.atoms.unite(t.repeat_interleave(heads.shape[-3] // t.shape[-3], -3) if t.ndim > 2 else t, heads)
    s.heads[node.name] = heads
    if isinstance(mask, Tensor):
        # A mask per head goes with its head; any other is read by all and has to stay whole.
        if mask.ndim > 2 and mask.shape[-3] > 1:
            s.atoms.unite(heads, mask)
        else:
            s.atoms.freeze(mask, f"{where(node)} shares the mask among heads")
    return heads.expand(shape)


def _contracted(s: State, node: Node, a: Tensor, b: Tensor) -> Tensor:
    """(..., i, k), (..., j, k) -> (..., i, j): where both have channels along k they lose the same in all heads.

    These are zeros on one side, so that the sum is the same without them. Where one side has positions there it keeps its own
    channels.
    """
    shape = tuple(node.meta["shape"])
    for one, other, axis in ((a, b, -1), (b, a, -2)):
        if not varies(other, -1) and varying(other) == [other.ndim - 2]:
            s.atoms.freeze(one, f"{where(node)} sums its channels over positions")
            return shaped(along(other, -2), shape, len(shape) + axis)
    channels = s.atoms.per_channel(a, -1)
    s.atoms.unite(channels, s.atoms.per_channel(b, -1))
    s.summed.add(node.name)
    s.zeroed.append((channels, node.all_input_nodes[0], f"{where(node)} sums over channels that do not vanish"))
    return s.atoms.new(1).view(()).expand(shape)
