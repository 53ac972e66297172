"""Layers that regression understands, each seen as a linear map from sampled rows to sampled rows.

A layer that is called several times is one map whose rows come from all of its calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.entropy.moments import Positions, Window, entries, patches, sample
from compress.graph.operations import CONVOLUTIONS, TRANSPOSED

LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)


@dataclass(frozen=True)
class Layer:
    """A convolution, transposed or not, or a linear layer.

    Attributes:
        nodes: names of its calls, in graph order.
        path: module path.
        window: geometry; that of a linear layer has no axes.
        groups: independent maps side by side.
        inputs: columns per group (channels * taps).
        outputs: all of them.
        linear: whether it is a Linear.
    """

    nodes: tuple[str, ...]
    path: str
    window: Window
    groups: int
    inputs: int
    outputs: int
    linear: bool

    @property
    def reads(self) -> int:
        """The axis of the weight along which the inputs lie."""
        return 0 if self.window.transposed else 1

    def images(self, x: Tensor) -> Tensor:
        """Inputs or outputs as (n, c, *space)."""
        # Tokens are rows like any others: a linear layer does not know where they stand.
        return x.reshape(-1, x.shape[-1]) if self.linear else x

    def places(self, y: Tensor, rows: int, generator: torch.Generator) -> Positions:
        """Sampled output positions of a batch; y is the layer's output."""
        y = self.images(y)
        return sample((len(y), *y.shape[2:]), rows, generator)

    def rows(self, x: Tensor, at: Positions) -> Tensor:
        """Input rows, (rows, groups * inputs)."""
        return patches(self.images(x), self.window, at)

    def counterpart(self, at: Positions, x: Tensor, other: Layer, other_x: Tensor) -> Positions | None:
        """The same outputs of another layer, in front of which or at which padding has moved; None where it has no such outputs.

        With e the border by which its input is larger on each side, and window k' instead of k where it has lost it, its position
        is o + (e + padding' - padding + (k - k') / 2) / stride.

        Args:
            at: output positions of this layer.
            x: its input.
            other: the other layer, the same but for its padding and its window.
            other_x: the other layer's input.
        """
        # Where it mixes positions, channels are what it goes along: fewer of them, and each is what it was.
        if self.linear and x.shape[:-1] != other_x.shape[:-1]:
            return None
        sizes = zip(self.images(x).shape[2:], other.images(other_x).shape[2:], strict=True)
        twice = [there - here for here, there in sizes]
        here, there = self.window, other.window
        less = [(k - o) * d // 2 for k, o, d in zip(here.kernel, there.kernel, here.dilation, strict=True)]
        paddings = zip(twice, here.padding, there.padding, less, strict=True)
        moved = [e // 2 + o[0] - p[0] + n for e, p, o, n in paddings]
        if not any(twice) and not any(moved):
            return at
        # Odd differences cannot lie evenly on both sides, and a shift between two steps of the stride hits no position.
        uneven = any(e % 2 for e in twice) or any(m % s for m, s in zip(moved, self.window.stride, strict=True))
        if uneven or self.window.transposed:
            return None
        return Positions(at.sample, tuple(p + m // s for p, m, s in zip(at.place, moved, self.window.stride, strict=True)))

    def targets(self, y: Tensor, at: Positions) -> Tensor:
        """Output rows, (rows, outputs)."""
        return entries(self.images(y), at)


def layers(module: GraphModule) -> dict[str, Layer]:
    """All layers that regression understands, by module path, in graph order.

    A weight that several layers hold is nobody's alone to refit, and neither are such layers.
    """
    calls: dict[str, list[str]] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node.name)
    holders: dict[int, set[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), set()).add(name.rpartition(".")[0])
    found: dict[str, Layer] = {}
    for path, nodes in calls.items():
        m: Any = module.get_submodule(path)
        # Exactly one holder for each parameter: refitting a shared weight would change another layer.
        if (window := _window(m)) is not None and all(len(holders[id(p)]) == 1 for p in m.parameters()):
            outputs = m.out_features if isinstance(m, nn.Linear) else m.out_channels
            groups = int(getattr(m, "groups", 1))
            found[path] = Layer(tuple(nodes), path, window, groups, columns(m), outputs, isinstance(m, nn.Linear))
    return found


def _window(m: Any) -> Window | None:
    if type(m) is nn.Linear:
        return Window()
    if type(m) not in CONVOLUTIONS | TRANSPOSED:
        return None
    if type(m) in TRANSPOSED:
        padding, mode = tuple((int(p), int(p)) for p in m.padding), "constant"
    else:
        # As torch stores it: last axis first, two numbers each; only this attribute knows padding="same".
        sides = [int(p) for p in m._reversed_padding_repeated_twice]
        padding = tuple(zip(sides[-2::-2], sides[::-2], strict=True))
        mode = "constant" if m.padding_mode == "zeros" else m.padding_mode
    return Window(tuple(m.kernel_size), tuple(m.stride), tuple(m.dilation), padding, mode, type(m) in TRANSPOSED)


def columns(m: Any) -> int:
    """Weights per output of a layer."""
    if type(m) in TRANSPOSED:
        return m.weight[:, 0].numel() // m.groups
    return m.weight[0].numel()


def as_matrix(m: Any) -> Tensor:
    """A layer's weight as (outputs, columns), channel-major: a row per output."""
    weight = m.weight.detach()
    if type(m) not in TRANSPOSED:
        return weight.flatten(1)
    return weight.unflatten(0, (m.groups, -1)).transpose(1, 2).flatten(0, 1).flatten(1)


def from_matrix(m: Any, matrix: Tensor) -> Tensor:
    """The inverse of `as_matrix`: (outputs, columns) as a weight of this layer's shape."""
    if type(m) not in TRANSPOSED:
        return matrix.view_as(m.weight)
    into, out, *kernel = m.weight.shape
    return matrix.view(m.groups, out, into // m.groups, *kernel).transpose(1, 2).reshape(m.weight.shape)
