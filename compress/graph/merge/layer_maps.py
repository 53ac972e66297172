"""Layers as affine maps, in eval mode, and affine maps as layers.

convolution, linear layer     W, b as they are
average pool                  1 / (entries of the window), for each channel
batch norm                    gamma / sqrt(var + eps), beta - mean gamma / sqrt(var + eps), for each channel
line                          slope, offset, for each channel
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from compress.graph import operations
from compress.graph.channel_affine import ChannelAffine
from compress.graph.merge.affine import Form, Kernel
from compress.graph.merge.batch_norm import affine

BATCH_NORMS = frozenset({nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm})
AVERAGES: dict[type[nn.Module], int] = {nn.AvgPool1d: 1, nn.AvgPool2d: 2, nn.AvgPool3d: 3}
LAYERS = operations.AFFINE_MAPS
"""What a plan names; norms and linearized activations go with them."""


def form(m: Any) -> Form | str:
    """The map of a layer without its numbers, or why it is none."""
    kind = type(m)
    if kind in operations.CONVOLUTIONS:
        return _convolution(m)
    if kind is nn.Linear:
        return Form(m.in_features, m.out_features, biased=m.bias is not None)
    if kind in AVERAGES:
        return _average(m, AVERAGES[kind])
    if kind in BATCH_NORMS:
        if m.running_mean is None:
            return "has no running statistics"
        return Form(m.num_features, m.num_features, m.num_features, biased=True)
    if kind is ChannelAffine:
        return Form(m.channels, m.channels, m.channels, biased=True)
    return f"({kind.__name__}) is not linear"


def _convolution(m: Any) -> Form | str:
    # Dilation would need zeros between the taps of W; `Form` has none.
    if any(d != 1 and k != 1 for d, k in zip(m.dilation, m.kernel_size, strict=True)):
        return "has gaps in its window (dilation)"
    if m.padding_mode != "zeros":
        return f"pads with padding mode {m.padding_mode}"
    padding = m.padding
    if isinstance(padding, str):
        around = [k - 1 if padding == "same" else 0 for k in m.kernel_size]
        if any(p % 2 for p in around):
            # Even windows: torch pads the odd entry on one side, which one number per axis cannot say.
            return "pads more on one side than on the other"
        padding = tuple(p // 2 for p in around)
    return Form(m.in_channels, m.out_channels, m.groups, m.kernel_size, m.stride, tuple(padding), m.bias is not None)


def pad(m: Any, padding: tuple[int, ...]) -> None:
    """Give a convolution or a pool another padding, a number per axis."""
    m.padding = padding
    if hasattr(m, "_reversed_padding_repeated_twice"):  # what torch itself reads where zeros are not the padding mode
        m._reversed_padding_repeated_twice = [p for p in reversed(padding) for _ in range(2)]


def _average(m: Any, dims: int) -> Form | str:
    size, stride, padding = (_each(n, dims) for n in (m.kernel_size, m.stride, m.padding))
    counted = m.count_include_pad or getattr(m, "divisor_override", None) is not None
    # The window of ceil_mode may reach beyond the padding, so sizes no longer follow the formula.
    if m.ceil_mode:
        return "rounds sizes up (ceil_mode)"
    # The divisor then depends on the position, and the map is not the same everywhere.
    if any(padding) and not counted:
        return "divides by fewer entries on the border (count_include_pad=False)"
    return Form(0, 0, 0, size, stride, padding)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    return (value,) * dims if isinstance(value, int) else tuple(value)


def kernel(m: Any, like: Form) -> Kernel:
    """The map of a layer with its numbers, in float64; `like` is its form."""
    if type(m) in AVERAGES:
        entries = getattr(m, "divisor_override", None) or math.prod(like.size)
        return Kernel(like, torch.full((1, 1, *like.size), 1 / entries, dtype=torch.float64))
    if type(m) in BATCH_NORMS:
        # In float64 from the start: the scale of a norm with a tiny variance amplifies rounding.
        scale, shift = affine(copy.deepcopy(m).double())
        return Kernel(like, scale[:, None], shift)
    if type(m) is ChannelAffine:
        return Kernel(like, _double(m.slope)[:, None], _double(m.offset))
    return Kernel(like, _double(m.weight), None if m.bias is None else _double(m.bias))


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double()


def layer(made: Kernel, like: nn.Module) -> nn.Module:
    """A convolution or linear layer that computes a map; type, device and mode are those of a layer with weights, `like`."""
    f, weight, bias = made.form, made.weight, made.bias
    old = next(like.parameters())
    dims = len(f.size)
    new: Any
    if dims == 0:
        # On meta, so that no weights are drawn only to be replaced (and the random state stays as it was).
        new = nn.Linear(f.inputs, f.outputs, bias is not None, device="meta")
    else:
        kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        new = kind(f.inputs, f.outputs, f.size, f.stride, f.padding, 1, f.groups, bias is not None, device="meta")
    new.weight = nn.Parameter(weight.to(old).contiguous(), old.requires_grad)
    if bias is not None:
        new.bias = nn.Parameter(bias.to(old).contiguous(), old.requires_grad)
    return new.train(like.training)
