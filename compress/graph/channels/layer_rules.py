"""Rules for layers with parameters: which atoms each of their axes reads, makes or passes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.fx import Node
from torch.nn.modules.conv import _ConvNd

from compress.graph.channels.atom_state import Sized, State, of_tables, shaped, unknown, where
from compress.graph.channels.atoms import varies, varying

STATISTICS = "takes its statistics over all channels, so removing one would change the rest"


def convolution(s: State, node: Node, x: Tensor, weight: str, bias: str | None, sizes: Sequence[int], transposed: bool) -> Any:
    """Weight (out, in/groups, ...), or (in, out/groups, ...) where transposed. `sizes` = (out, groups, axes of the weight)."""
    out, groups, ndim = sizes
    # torch takes (c, h, w) too; axis 1 would be height then.
    if x.ndim != ndim:
        return unknown(s, node, [x], "has no batch axis")
    if groups == 1 and x.shape[1] > 1 and not varies(x, 1) and varying(x) and _of_single_places(s, weight, x, node):
        # Tokens stand where a convolution has its channels.
        _positions(s, node, (weight, bias), (x.shape[1], out), transposed)
        return x.narrow(1, 0, 1).expand(tuple(node.meta["shape"]))
    into = s.atoms.per_channel(x, 1)
    made = s.atoms.new(out)
    role = "out"
    if groups == 1:
        s.axis(weight, 0 if transposed else 1, "in", into)
        s.axis(weight, 1 if transposed else 0, "out", made)
    elif weight in s.thinned or (weight not in s.whole and not transposed and _finer_inside(out, len(into), groups)):
        s.thin[weight], s.groups[weight] = made, groups
        # The same positions of every group go: groups stay, each gets thinner.
        per_in, per_out = into.view(groups, -1), made.view(groups, -1)
        s.atoms.unite(per_in, per_in[:1].clone())
        s.atoms.unite(per_out, per_out[:1].clone())
        s.axis(weight, 1, "in", per_in[0])  # (out, in / groups): one axis serves all groups
        s.axis(weight, 0, "out", made)
    else:
        # Whole groups go: a group's inputs and outputs are one class. Depthwise is the case of one channel per group.
        per_in, per_out = into.view(groups, -1), made.view(groups, -1)
        s.atoms.unite(per_in, per_in[:, :1].clone())
        s.atoms.unite(per_out, per_in[:, :1].clone())
        # "through": inputs and outputs are one class, and masking zeroes only what is "in".
        role = "through"
        s.axis(weight, 0, role, into if transposed else made)
        # More than one input per group: these may all become one class, which solve then tries the other way.
        if not transposed and len(into) > groups:
            s.grouped[weight] = made
    if bias is not None:
        s.axis(bias, 0, role, made)
    return shaped(made, node.meta["shape"], 1)


def _of_single_places(s: State, weight: str, x: Tensor, node: Node) -> bool:
    """Whether a convolution looks at one place at a time, and at each."""
    m = s.modules.get(weight.rpartition(".")[0])
    ones = isinstance(m, _ConvNd) and set(m.kernel_size) == {1} == set(m.stride)
    return ones and tuple(node.meta["shape"][2:]) == tuple(x.shape[2:])


def _positions(s: State, node: Node, tensors: tuple[str, str | None], sizes: tuple[int, int], transposed: bool = False) -> None:
    """The axes (in, out) of a layer that mixes positions within each channel: channels pass, and the layer itself stays."""
    fixed = s.atoms.new(1)
    s.atoms.freeze(fixed, f"{where(node)} mixes positions, not channels")
    (weight, bias), (into, out) = tensors, sizes
    s.axis(weight, int(not transposed), "in", fixed.expand(into))
    s.axis(weight, int(transposed), "out", fixed.expand(out))
    if bias is not None:
        s.axis(bias, 0, "out", fixed.expand(out))


_FEW = 8


def _finer_inside(out: int, into: int, groups: int) -> bool:
    """Whether few wide groups give more choices by their positions than by their number."""
    return groups <= _FEW and min(out, into) // groups > groups


def linear(s: State, node: Node, x: Tensor, weight: str, bias: str | None, out: int) -> Tensor:
    """Weight (out, in), on the last axis."""
    if mixes_positions(x):
        # It mixes positions within each channel (a token mixer): channels pass, the layer itself stays.
        _positions(s, node, (weight, bias), (x.shape[-1], out))
        return x.narrow(-1, 0, 1).expand(*x.shape[:-1], out)
    s.axis(weight, 1, "in", s.atoms.per_channel(x, -1))
    made = s.atoms.new(out)
    s.axis(weight, 0, "out", made)
    if bias is not None:
        s.axis(bias, 0, "out", made)
    return shaped(made, node.meta["shape"], -1)


def mixes_positions(x: Tensor) -> bool:
    """Whether channels lie on another axis than the last one, which is constant in atoms: MLP-Mixer's token mixing."""
    return x.shape[-1] > 1 and not varies(x, -1) and bool(varying(x))


def embedding(s: State, node: Node, x: Tensor, weight: str, width: int) -> Tensor:
    """Weight (entries, channels): a number becomes the channels of its row, on a new last axis."""
    s.atoms.freeze(x, f"{where(node)} looks it up in a table")
    made = s.atoms.new(width)
    s.axis(weight, 1, "out", made)
    return shaped(made, node.meta["shape"], -1)


def per_channel_norm(s: State, node: Node, x: Tensor, tensors: Sequence[str], groups: int) -> Tensor:
    """BatchNorm and InstanceNorm (groups = 0: each channel alone), GroupNorm (whole groups go, which is exact)."""
    if groups == 1:  # layer norm over an image in disguise
        return joint_norm(s, node, x, tensors, 1)
    channels = s.atoms.per_channel(x, 1)
    if groups:
        per_group = channels.view(groups, -1)
        s.atoms.unite(per_group, per_group[:, :1].clone())
    for tensor in tensors:
        s.axis(tensor, 0, "through", channels)
    out = shaped(channels, x.shape, 1)
    # A norm without affine parameters and statistics has nothing that surgery could cut, only its numbers.
    if groups or not tensors:  # what the tensors of a norm cannot tell
        s.sized[node.name] = Sized(out, out, (), {})
    return out


def joint_norm(s: State, node: Node, x: Tensor, tensors: Sequence[str], axis: int) -> Tensor:
    """Statistics over all channels: those that go count as zeros from then on, where they are zeros without their makers."""
    channels = s.atoms.per_channel(x, axis)
    out = shaped(channels, x.shape, axis)
    for tensor in tensors:
        s.axis(tensor, 0, "through", channels)
    if node.op == "call_module":
        s.sized[node.name] = Sized(out, out, (), {})
        s.zeroed.append((channels, node.all_input_nodes[0], f"{where(node)} {STATISTICS}"))
    else:
        s.atoms.freeze(channels, f"{where(node)} {STATISTICS}")
    return out


def layer_norm(s: State, node: Node, x: Tensor, tensors: Sequence[str], dims: int) -> Tensor:
    """Statistics over the last `dims` axes.

    Channels on an axis in front of those (the heads, where each head is normalized by itself) pass; a head goes as a whole.
    """
    inner = range(x.ndim - dims, x.ndim)
    # Of a parameter, as queries that are learned are, the axes in front are positions.
    if any(d not in inner for d in varying(x)) and not of_tables(node.all_input_nodes[0]):
        return s.atoms.unite_along(x, inner)
    if dims == 1:
        return joint_norm(s, node, x, tensors, -1)
    # With more axes the weight is no vector of channels; freezing x is all there is to say.
    s.atoms.freeze(x, f"{where(node)} {STATISTICS}")
    return x


def prelu(s: State, node: Node, x: Tensor, weight: str, slopes: int) -> Tensor:
    """One slope per channel, or one for all, which then stays."""
    slope = s.atoms.per_channel(x, 1) if slopes > 1 else s.atoms.new(1)
    if slopes == 1:
        s.atoms.freeze(slope, f"{where(node)} has one slope for all channels")
    s.axis(weight, 0, "through", slope)
    return x


def channel_affine(s: State, node: Node, x: Tensor, tensors: Sequence[str], axis: int) -> Tensor:
    """Slope and offset of each channel, on axis 1 or the last one."""
    channels = s.atoms.per_channel(x, axis)
    for tensor in tensors:
        s.axis(tensor, 0, "through", channels)
    return shaped(channels, x.shape, axis)
