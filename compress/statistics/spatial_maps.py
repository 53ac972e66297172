"""Spatial entropy of the maps behind every convolution, taken while the model runs.

The map of a convolution is what leaves the norm and the activation right behind it: what its consumers see. Where something else
follows first (a sum, pooling) it ends there. Maps of fewer than 2 x 2 pixels have no neighbors and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from compress.entropy.spatial import Spatial, spatial
from compress.graph import operations
from compress.measure.device import placed

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_BEHIND = operations.PER_CHANNEL_NORMS | operations.SAME | {nn.PReLU}


class Watching(Interpreter):
    """A traced model that takes the entropy of its maps as it is called.

    Args:
        module: in eval mode; not changed.
        definition: "pairwise" or "aura"; None takes none.
        images: how many are watched, to the end of the batch; all by default.

    Attributes:
        layers: spatial entropy so far, by path of the convolution.
    """

    def __init__(self, module: GraphModule, definition: str | None, images: float = float("inf")):
        super().__init__(module)
        self.places = {} if definition is None else maps(module)
        self.definition, self.left = definition or "", images
        self.layers: dict[str, Spatial] = {}

    def __call__(self, *inputs: Tensor) -> Any:
        """The model's output."""
        output = self.run(*inputs)
        self.left -= len(inputs[0])
        return output

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        path = self.places.get(n.name)
        if path is not None and self.left > 0 and min(value.shape[-2:]) >= 2:
            new = spatial(value, self.definition)
            self.layers[path] = self.layers[path] + new if path in self.layers else new
        return value


def maps(module: GraphModule) -> dict[str, str]:
    """Node whose value is the map of a convolution -> path of the convolution. Two-dimensional ones with neighbors only."""
    found: dict[str, str] = {}
    for node in module.graph.nodes:
        if node.op == "call_module" and type(module.get_submodule(str(node.target))) in _CONVOLUTIONS:
            # without a noted shape the map is taken for large enough; run_node looks at the real one
            shape = node.meta.get("shape", (2, 2))
            if min(shape[-2:]) >= 2:
                found[_last(module, node).name] = str(node.target)
    return found


def entropies(
    module: GraphModule, inputs: Iterable[tuple[Tensor, ...]], device: torch.device, definition: str
) -> dict[str, Spatial]:
    """Spatial entropy by path of the convolution, over batches of model inputs."""
    run = Watching(placed(module, device), definition)
    with torch.no_grad():
        for batch in inputs:
            run(*(x.to(device) for x in batch))
    return run.layers


def _last(module: GraphModule, node: Node) -> Node:
    # A second consumer would see the value before the norm or activation.
    while len(node.users) == 1:
        user = next(iter(node.users))
        if user.op != "call_module" or type(module.get_submodule(str(user.target))) not in _BEHIND:
            break
        node = user
    return node
