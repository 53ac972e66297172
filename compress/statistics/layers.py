"""Layers that regression understands, each seen as a linear map from sampled rows to sampled rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from compress.entropy.moments import Positions, Window, patches, sample


@dataclass(frozen=True)
class Layer:
    """A Conv2d or Linear that is called once.

    Attributes:
        node: name of its node.
        path: module path.
        window: geometry; a linear layer is a 1x1 convolution over its rows.
        groups: independent maps side by side.
        inputs: columns per group (channels * taps).
        outputs: all of them.
        linear: whether it is a Linear.
    """

    node: str
    path: str
    window: Window
    groups: int
    inputs: int
    outputs: int
    linear: bool

    def images(self, x: Tensor) -> Tensor:
        """Inputs or outputs as (n, c, h, w)."""
        return x.reshape(-1, x.shape[-1], 1, 1) if self.linear else x

    def places(self, y: Tensor, rows: int, generator: torch.Generator) -> Positions:
        """Sampled output positions of a batch; y is the layer's output."""
        y = self.images(y)
        return sample(y.shape[0], y.shape[2], y.shape[3], rows, generator)

    def rows(self, x: Tensor, at: Positions) -> Tensor:
        """Input rows, (rows, groups * inputs)."""
        return patches(self.images(x), self.window, at)

    def targets(self, y: Tensor, at: Positions) -> Tensor:
        """Output rows, (rows, outputs)."""
        return patches(self.images(y), Window(), at)


def layer(module: GraphModule, node: Node) -> Layer | None:
    """The layer behind a node, None where regression does not know it."""
    if node.op != "call_module" or sum(n.op == "call_module" and n.target == node.target for n in module.graph.nodes) > 1:
        return None
    m: Any = module.get_submodule(str(node.target))
    if type(m) is nn.Linear:
        return Layer(node.name, str(node.target), Window(), 1, m.in_features, m.out_features, True)
    if type(m) is not nn.Conv2d:
        return None
    mode = "constant" if m.padding_mode == "zeros" else m.padding_mode
    left, right, top, bottom = (int(p) for p in m._reversed_padding_repeated_twice)
    window = Window(_two(m.kernel_size), _two(m.stride), _two(m.dilation), (left, right, top, bottom), mode)
    return Layer(node.name, str(node.target), window, m.groups, m.weight[0].numel(), m.out_channels, False)


def _two(pair: Sequence[int]) -> tuple[int, int]:
    return int(pair[0]), int(pair[1])


def layers(module: GraphModule) -> dict[str, Layer]:
    """All layers that regression understands, by module path, in graph order."""
    found = (layer(module, node) for node in module.graph.nodes)
    return {one.path: one for one in found if one is not None}
