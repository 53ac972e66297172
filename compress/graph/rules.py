"""What each operation does to channel atoms.

A rule takes the solver's state, the node and the values that reach it (atom tensors in place of activations, everything else as it
is) and gives the node's value. Data movement has no rule: the real operation is called on the atoms. What stands in no
table is not guessed at: it freezes what it touches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Node

from compress.graph.atoms import Atoms, varies, varying


class State:
    """What the rules write to: atoms, parameter axes, and nodes whose constant arguments follow the channel counts."""

    def __init__(self, by_position: frozenset[str], names: Mapping[str, str]):
        self.atoms = Atoms()
        self.names = names  # every name of a tied tensor -> its first name
        self.axes: dict[tuple[str, int], tuple[str, Tensor]] = {}  # (state_dict name, dim) -> role, atoms
        self.sized: dict[str, tuple[Tensor, Tensor]] = {}  # node -> atoms of its input and of its output
        self.rectangles: list[Tensor] = []  # tensors that must stay rectangular
        self.picked: list[tuple[Tensor, int, str]] = []  # atoms, axis of which single entries are taken, by whom
        self.by_position = by_position  # grouped layers that lose the same positions of every group
        self.grouped: dict[str, Tensor] = {}  # weight of a layer that loses whole groups -> atoms of its outputs
        self.parameters: dict[str, Tensor] = {}  # parameters and buffers that stand in the graph themselves

    def axis(self, tensor: str, dim: int, role: str, atoms: Tensor) -> None:
        """Record which atom each index of a parameter's axis belongs to; a layer called twice ties both."""
        key = (self.names.get(tensor, tensor), dim)
        if key in self.axes:
            self.atoms.unite(self.axes[key][1], atoms)
        else:
            self.axes[key] = (role, atoms)


def where(node: Node) -> str:
    """What to call a node in a reason."""
    name = str(node.target) if node.op == "call_module" else getattr(node.target, "__name__", str(node.target))
    source = node.meta.get("source", "") if node.op.startswith("call") else ""
    return f"{name} ({source})" if source else name


def shaped(vector: Tensor, shape: Sequence[int], dim: int) -> Tensor:
    """A vector of atoms along one axis of a shape, expanded along the others."""
    view = [1] * len(shape)
    view[dim] = -1
    return vector.view(view).expand(tuple(shape))


# ---- layers with parameters ------------------------------------------------------------------------------------------------


def convolution(
    s: State, node: Node, x: Tensor, weight: str, bias: str | None, out: int, groups: int, transposed: bool
) -> Tensor:
    """Weight (out, in/groups, ...), or (in, out/groups, ...) where transposed."""
    into = s.atoms.per_channel(x, 1)
    made = s.atoms.new(out)
    if groups == 1:
        s.axis(weight, 0 if transposed else 1, "in", into)
        s.axis(weight, 1 if transposed else 0, "out", made)
    elif weight in s.by_position and not transposed:
        # The same positions of every group go: groups stay, each gets thinner.
        per_in, per_out = into.view(groups, -1), made.view(groups, -1)
        s.atoms.unite(per_in, per_in[:1].clone())
        s.atoms.unite(per_out, per_out[:1].clone())
        s.axis(weight, 1, "in", per_in[0])
        s.axis(weight, 0, "out", made)
    else:
        # Whole groups go: a group's inputs and outputs are one class. Depthwise is the case of one channel per group.
        per_in, per_out = into.view(groups, -1), made.view(groups, -1)
        s.atoms.unite(per_in, per_in[:, :1].clone())
        s.atoms.unite(per_out, per_in[:, :1].clone())
        s.axis(weight, 0, "through", into if transposed else made)
        if not transposed:
            s.grouped[weight] = made
    if bias is not None:
        s.axis(bias, 0, "out" if groups == 1 or weight in s.by_position else "through", made)
    return shaped(made, node.meta["shape"], 1)


def linear(s: State, node: Node, x: Tensor, weight: str, bias: str | None, out: int) -> Tensor:
    """Weight (out, in), on the last axis."""
    if x.shape[-1] > 1 and not varies(x, -1) and varying(x):
        # It mixes positions within each channel (a token mixer): channels pass, the layer itself stays.
        fixed = s.atoms.new(1)
        s.atoms.freeze(fixed, f"{where(node)} mixes positions, not channels")
        s.axis(weight, 1, "in", fixed.expand(x.shape[-1]))
        s.axis(weight, 0, "out", fixed.expand(out))
        if bias is not None:
            s.axis(bias, 0, "out", fixed.expand(out))
        return x.narrow(-1, 0, 1).expand(*x.shape[:-1], out)
    s.axis(weight, 1, "in", s.atoms.per_channel(x, -1))
    made = s.atoms.new(out)
    s.axis(weight, 0, "out", made)
    if bias is not None:
        s.axis(bias, 0, "out", made)
    return shaped(made, node.meta["shape"], -1)


def per_channel_norm(s: State, x: Tensor, tensors: Sequence[str], groups: int, node: Node, dim: int = 1) -> Tensor:
    """BatchNorm and InstanceNorm (groups = 0: each channel alone), GroupNorm (whole groups go, which is exact)."""
    channels = s.atoms.per_channel(x, dim)
    if groups == 1 and len(channels) > 1:
        s.atoms.freeze(channels, f"{where(node)} takes its statistics over all channels, so removing one would change the rest")
    if groups:
        per_group = channels.view(groups, -1)
        s.atoms.unite(per_group, per_group[:, :1].clone())
    for tensor in tensors:
        s.axis(tensor, 0, "through", channels)
    return shaped(channels, x.shape, dim)


def layer_norm(s: State, x: Tensor, tensors: Sequence[str], dims: int, node: Node) -> Tensor:
    """Statistics over the last `dims` axes: nothing along them can be removed exactly."""
    if dims == 1:
        channels = s.atoms.per_channel(x, -1)
        x = shaped(channels, x.shape, -1)
        for tensor in tensors:
            s.axis(tensor, 0, "through", channels)
    s.atoms.freeze(x, f"{where(node)} takes its statistics over all channels, so removing one would change the rest")
    return x


# ---- elementwise, reductions, products -------------------------------------------------------------------------------------


def elementwise(s: State, node: Node, operands: Sequence[Tensor]) -> Tensor:
    """Atoms that meet are united; an operand that is broadcast over channels stays whole itself."""
    if len(operands) == 1:
        return operands[0]
    shape = torch.broadcast_shapes(*(t.shape for t in operands))
    full = [t for t in operands if t.shape == shape]
    if not full:
        return unknown(s, node, operands, "broadcasts all of its operands")
    main = full[0]
    axes = varying(main)
    for other in operands:
        if other is main:
            continue
        sizes = (1,) * (main.ndim - other.ndim) + tuple(other.shape)
        if axes and all(sizes[d] == 1 for d in axes):
            s.atoms.freeze(other, f"{where(node)} broadcasts it over channels")
        else:
            s.atoms.unite(main, other)
    return main


def reduced(s: State, node: Node, x: Tensor, dims: Sequence[int]) -> Tensor:
    """A mean, sum, maximum or pooling over `dims`; the other axes keep their atoms."""
    if any(varies(x, d) for d in dims):
        return unknown(s, node, [x], "reduces over channels")
    slim = x
    for d in dims:
        slim = slim.narrow(d, 0, 1)
    shape = node.meta["shape"]
    if len(shape) == x.ndim:
        return slim.expand(tuple(shape))
    return slim.reshape(shape)


def spatial(s: State, node: Node, x: Tensor) -> Tensor:
    """Pooling, resizing and padding: whatever happens within a channel, on axes behind it."""
    return shaped(s.atoms.per_channel(x, 1), node.meta["shape"], 1)


def padded(s: State, node: Node, x: Tensor, pad: Sequence[int]) -> Tensor:
    """Padding in space keeps channels; padded channels are constants that have no producer, so they stay."""
    dims = [x.ndim - 1 - i // 2 for i in range(0, len(pad), 2) if pad[i] or pad[i + 1]]
    if not any(varies(x, d) for d in dims):
        return reduced(s, node, x, dims)
    fill = s.atoms.new(1)
    s.atoms.freeze(fill, f"{where(node)} pads with constant channels")
    return F.pad(x, list(pad), value=int(fill))


def gated(s: State, x: Tensor, dim: int) -> Tensor:
    """GLU: both halves of an axis go together."""
    half, gate = x.chunk(2, dim)
    s.atoms.unite(half, gate)
    return half


def shuffled(s: State, x: Tensor, groups: int) -> Tensor:
    """Channel shuffle: (groups, n) -> (n, groups); it stays rectangular."""
    split = x.reshape(x.shape[0], groups, -1, *x.shape[2:])
    s.rectangles.append(split)
    return split.transpose(1, 2).reshape(x.shape)


def matmul(s: State, node: Node, a: Tensor, b: Tensor) -> Tensor:
    """(..., i, k) @ (..., k, j). Contracting channels (q k^T) ties them all: a head goes as a whole."""
    shape = tuple(node.meta["shape"])
    if min(a.ndim, b.ndim) < 2:
        return unknown(s, node, [a, b], "multiplies by a vector")
    if varies(a, -1) or varies(b, -2):
        rep_a = s.atoms.unite_along(a, [a.ndim - 2, a.ndim - 1]).narrow(-2, 0, 1).narrow(-1, 0, 1)
        rep_b = s.atoms.unite_along(b, [b.ndim - 2, b.ndim - 1]).narrow(-2, 0, 1).narrow(-1, 0, 1)
        s.atoms.unite(rep_a, rep_b)
        return rep_a.expand(shape) if rep_a.numel() >= rep_b.numel() else rep_b.expand(shape)
    if varies(a, -2) and varies(b, -1):
        return unknown(s, node, [a, b], "multiplies channels by channels")
    rows = varies(a, -2)
    wide, weights = (a.narrow(-1, 0, 1), b) if rows else (b.narrow(-2, 0, 1), a)
    wide = wide.expand(shape)
    s.atoms.unite(weights.narrow(-2, 0, 1).narrow(-1, 0, 1).expand(*shape[:-2], 1, 1), wide)
    return wide


def attention(s: State, node: Node, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T) v, all (..., tokens, head dimension): the classes are whole heads."""
    heads = s.atoms.unite_along(q, [q.ndim - 2, q.ndim - 1]).narrow(-2, 0, 1).narrow(-1, 0, 1)
    s.atoms.unite(s.atoms.unite_along(k, [k.ndim - 2, k.ndim - 1]), heads)
    s.atoms.unite(v, heads)
    return v.narrow(-2, 0, 1).expand(tuple(node.meta["shape"]))


def softmax(s: State, node: Node, x: Tensor, dim: int) -> Tensor:
    return unknown(s, node, [x], "normalises over channels") if varies(x, dim) else x


def unknown(s: State, node: Node, values: Sequence[Tensor], why: str = "is not known to the solver") -> Any:
    """Freeze all that comes in; what goes out is one frozen atom."""
    for t in values:
        s.atoms.freeze(t, f"{where(node)} {why}")
    fixed = s.atoms.new(1)
    s.atoms.freeze(fixed, f"{where(node)} {why}")
    return _filled(fixed, node.meta.get("shape"))


def _filled(atom: Tensor, shape: Any) -> Any:
    if isinstance(shape, dict):
        return {k: _filled(atom, v) for k, v in shape.items()}
    if shape is None:
        return None
    if all(isinstance(n, int) for n in shape):
        return atom.expand(shape)
    return tuple(_filled(atom, part) for part in shape)
