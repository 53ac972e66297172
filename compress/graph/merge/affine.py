"""Affine maps of feature maps: two that follow each other are one, and so are two that are added.

    y[o, t] = b[o] + sum over i, u of  W[o, i, u] x[i, s t + u - p]       x is 0 outside; a linear layer has no positions t, u

One after the other, the first read by the second:

    M[o, i, s1 u + a] += sum over c of  W2[o, c, u] W1[c, i, a]           b = b2 + sum over u of  W2[., ., u] b1
    k = k1 + s1 (k2 - 1)        s = s1 s2        p = p1 + s1 p2

Sizes agree for every n, because floors nest: (((n + 2 p1 - k1) // s1 + 1) + 2 p2 - k2) // s2 = (n + 2 p - k) // s.
Values agree away from the border. There the second map reads p2 zeros, where the one map computes what the first would give
beyond its border. Both are the same for every n if p2 = 0, or if the first gives zeros there: b1 = 0 and p1 >= k1 - 1.

Beside each other, on one input: window j of k_j entries lies at p - p_j in a window of k = max k_j, with p = max p_j. Sizes agree
for every n if the strides do and 2 p_j - k_j are the same. The identity is a window of one entry (Dirac).

Source: padding moved to the first layer, and skip connections as Dirac kernels: Kim, Jeong, Song, "Efficient Latency-Aware CNN
Depth Compression via Two-Stage Dynamic Programming", ICML 2023. Departs from it: the rule for b1 = 0, groups, and pools.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Form:
    """An affine map without its numbers.

    Attributes:
        inputs, outputs: channels; 0 where any number will do, each channel for itself (pools, the identity).
        groups: as in a convolution; 0 with `inputs`.
        size, stride, padding: one number per axis of space; empty for linear layers and for what acts on channels only.
        biased: whether it adds a constant.
    """

    inputs: int
    outputs: int
    groups: int = 1
    size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    biased: bool = False

    @property
    def weights(self) -> int:
        """Entries of W: multiply-accumulates per position of the output."""
        # Groups of 0 stand for any width; max spares a division by it.
        return self.outputs * (self.inputs // max(self.groups, 1)) * math.prod(self.size)

    @property
    def params(self) -> int:
        """Entries of W and b."""
        return self.weights + self.biased * self.outputs

    @property
    def padded(self) -> bool:
        """Whether it reads zeros around its input."""
        return any(self.padding)

    @property
    def pointwise(self) -> bool:
        """Whether every position is mapped for itself."""
        return not self.padded and all(n == 1 for n in self.size + self.stride)


@dataclass(frozen=True)
class Kernel:
    """An affine map: `weight` (outputs, inputs / groups, *size) and `bias` (outputs,) or None. One of any width has width 1."""

    form: Form
    weight: Tensor
    bias: Tensor | None = None


def identity(dims: int) -> Form:
    """The map that changes nothing, for any number of channels."""
    return Form(0, 0, 0, (1,) * dims, (1,) * dims, (0,) * dims)


def dirac(dims: int) -> Kernel:
    """The numbers of `identity`."""
    return Kernel(identity(dims), torch.ones(1, 1, *(1,) * dims, dtype=torch.float64))


def same_border(first: Form, second: Form) -> bool:
    """Whether `second` after `first` is one map on the border, too (module docstring)."""
    first, second = _level(first, second)
    # The zeros that the second reads must be what the first gives beyond its border: no bias, windows wholly in the padding.
    zeros = not first.biased and all(p >= k - 1 for p, k in zip(first.padding, first.size, strict=True))
    return zeros or not second.padded


def after(first: Form, second: Form) -> Form:
    """The form of `second` after `first`.

    Raises:
        ValueError: `second` does not take as many channels as `first` gives.
    """
    first, second = _level(first, second)
    first, second = _wide(first, second.inputs), _wide(second, first.outputs)
    if first.outputs != second.inputs:
        raise ValueError(f"{first.outputs} channels do not fit a map of {second.inputs}")
    axes = list(zip(first.size, first.stride, first.padding, second.size, second.stride, second.padding, strict=True))
    return Form(
        inputs=first.inputs,
        outputs=second.outputs,
        groups=math.gcd(first.groups, second.groups),  # block diagonal times block diagonal: the finest partition that both keep
        size=tuple(k1 + s1 * (k2 - 1) for k1, s1, _, k2, _, _ in axes),
        stride=tuple(s1 * s2 for _, s1, _, _, s2, _ in axes),
        padding=tuple(p1 + s1 * p2 for _, s1, p1, _, _, p2 in axes),
        biased=first.biased or second.biased,
    )


def objection(one: Form, other: Form) -> str | None:
    """Why two maps of the same input cannot be added in one map; None where they can."""
    one, other = _level(one, other)
    if one.stride != other.stride:
        return f"strides {one.stride} and {other.stride} differ"
    if _trim(one) != _trim(other):
        return f"windows {one.size} with padding {one.padding} and {other.size} with {other.padding} do not give maps of one size"
    return None


def beside(one: Form, other: Form) -> Form:
    """The form of the sum of two maps of the same input that have no `objection`."""
    one, other = _level(one, other)
    one, other = _wide(one, other.inputs), _wide(other, one.inputs)
    return replace(
        one,
        groups=math.gcd(one.groups, other.groups),
        # The smaller window lies in the middle of the larger: `objection` has made sure that sizes agree.
        size=_largest(one.size, other.size),
        padding=_largest(one.padding, other.padding),
        biased=one.biased or other.biased,
    )


def compose(first: Kernel, second: Kernel) -> Kernel:
    """`second` after `first`, in the precision of the two. The caller has asked `same_border`."""
    form = after(first.form, second.form)
    first, second = (_spread(k, len(form.size)) for k in (first, second))
    first, second = _widen(first, second.form.inputs), _widen(second, first.form.outputs)
    groups = max(form.groups, 1), max(first.form.groups, 1), max(second.form.groups, 1)
    bias = second.bias
    if first.bias is not None:
        # The docstring's b: each output sums the taps of W2, as a constant looks the same at every position.
        taps = second.weight.flatten(2).sum(2) if second.form.size else second.weight
        constant = _mix(taps, groups[2], first.bias[:, None], groups[2])[:, 0]
        bias = constant if bias is None else bias + constant
    # A 1x1 behind a window: one matrix product instead of a loop over taps.
    if math.prod(second.form.size) == 1:
        return Kernel(form, _mix(second.weight.flatten(1), groups[2], first.weight, groups[1]), bias)
    weight = first.weight.new_zeros(second.weight.shape[0], first.weight.shape[1] * groups[1] // groups[0], *form.size)
    for taps in itertools.product(*map(range, second.form.size)):
        # s1 u + a of the docstring, for all a at once.
        there = [slice(s * u, s * u + k) for u, s, k in zip(taps, first.form.stride, first.form.size, strict=True)]
        weight[(..., *there)] += _mix(second.weight[(..., *taps)], groups[2], first.weight, groups[1])
    return Kernel(form, weight, bias)


def add(one: Kernel, other: Kernel) -> Kernel:
    """The sum of two maps of the same input. The caller has asked `objection`."""
    form = beside(one.form, other.form)
    pair = [_spread(k, len(form.size)) for k in (one, other)]
    pair = [_widen(k, form.inputs) for k in pair]
    weight = None
    for kernel in pair:
        dense = _coarse(kernel.weight, max(kernel.form.groups, 1), max(form.groups, 1))
        weight = dense.new_zeros(*dense.shape[:2], *form.size) if weight is None else weight
        starts = [p - own for p, own in zip(form.padding, kernel.form.padding, strict=True)]
        weight[(..., *(slice(at, at + k) for at, k in zip(starts, kernel.form.size, strict=True)))] += dense
    biases = [k.bias for k in pair if k.bias is not None]
    assert weight is not None
    return Kernel(form, weight, sum(biases[1:], biases[0]) if biases else None)


def _mix(second: Tensor, groups2: int, first: Tensor, groups1: int) -> Tensor:
    """(o, c / groups2) times (c, i / groups1, ...), both block diagonal: (o, i / gcd, ...)."""
    groups = math.gcd(groups1, groups2)
    # Neither divides the other: both are written with the common number of groups first.
    if groups not in (groups1, groups2):
        second, first, groups1, groups2 = _coarse(second, groups2, groups), _coarse(first, groups1, groups), groups, groups
    outputs, tail = second.shape[0], first.shape[1:]
    if groups2 % groups1 == 0:
        blocks = _times(second.reshape(groups2, outputs // groups2, -1), first.reshape(groups2, len(first) // groups2, -1))
        return blocks.view(outputs, *tail)
    ratio = groups1 // groups2  # every block of the second reads `ratio` blocks of the first
    left = second.reshape(groups2, outputs // groups2, ratio, -1).transpose(1, 2).reshape(groups1, outputs // groups2, -1)
    blocks = _times(left, first.reshape(groups1, len(first) // groups1, -1))
    blocks = blocks.view(groups2, ratio, outputs // groups2, *tail).transpose(1, 2)
    return blocks.reshape(outputs, ratio * tail[0], *tail[1:])


def _times(left: Tensor, right: Tensor) -> Tensor:
    """Products of blocks, (g, o, c) and (g, c, x); plain numbers (depthwise, norms) are not worth a matrix product."""
    return left * right if left.shape[2] == 1 else left @ right


def _coarse(weight: Tensor, groups: int, fewer: int) -> Tensor:
    """The same map written with fewer groups: zeros where blocks do not meet."""
    ratio = groups // fewer
    if ratio == 1:
        return weight
    outputs, inputs, *size = weight.shape
    blocks = weight.view(fewer, ratio, outputs // groups, inputs, *size)
    wide = weight.new_zeros(fewer, ratio, outputs // groups, ratio, inputs, *size)
    index = torch.arange(ratio)
    wide[:, index, :, index] = blocks.transpose(0, 1)
    return wide.view(outputs, ratio * inputs, *size)


def _level(one: Form, other: Form) -> tuple[Form, Form]:
    """What acts on channels only gets the axes of space that the other has."""
    dims = max(len(one.size), len(other.size))
    return _lift(one, dims), _lift(other, dims)


def _lift(form: Form, dims: int) -> Form:
    more = dims - len(form.size)
    return replace(form, size=form.size + (1,) * more, stride=form.stride + (1,) * more, padding=form.padding + (0,) * more)


def _wide(form: Form, channels: int) -> Form:
    return form if form.inputs else replace(form, inputs=channels, outputs=channels, groups=channels)


def _spread(kernel: Kernel, dims: int) -> Kernel:
    more = dims - len(kernel.form.size)
    return replace(kernel, form=_lift(kernel.form, dims), weight=kernel.weight[(..., *(None,) * more)])


def _widen(kernel: Kernel, channels: int) -> Kernel:
    if kernel.form.inputs or not channels:
        return kernel
    return replace(kernel, form=_wide(kernel.form, channels), weight=kernel.weight.expand(channels, *kernel.weight.shape[1:]))


def _trim(form: Form) -> tuple[int, ...]:
    return tuple(2 * p - k for p, k in zip(form.padding, form.size, strict=True))


def _largest(one: Iterable[int], other: Iterable[int]) -> tuple[int, ...]:
    return tuple(map(max, one, other))
