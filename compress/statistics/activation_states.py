"""Activations watched while a model runs: on-counts of every activation, and published estimates where they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils.hooks import RemovableHandle

from compress.entropy.estimators import ESTIMATORS, BatchMean, from_norm
from compress.entropy.state import States, count
from compress.graph import operations
from compress.graph.linearize import activations, channel_axis, channels_at
from compress.graph.trace.sharing import sharing, without_in_place


def observed(module: GraphModule, device: torch.device) -> GraphModule:
    """A copy in eval mode on a device, to be hooked: nothing works in place or is trainable, weights are the model's own."""
    module = sharing(module, single=False).to(device).eval().requires_grad_(False)
    without_in_place(module)  # hooked values must not be overwritten
    return module


def watch(
    module: GraphModule, states: dict[str, States], bits: dict[str, BatchMean], estimator: str = "pooled"
) -> list[RemovableHandle]:
    """Hooks that count into these dictionaries as the model runs; counts stay on its device.

    An activation that is called at several places is pooled over them; where these differ in width it is left out.

    Args:
        module: traced model in which nothing works in place.
        states: on-counts by path.
        bits: what `estimator` says of the batches, by path; "pooled" leaves it empty.
        estimator: "pooled", or a name of `ESTIMATORS`.
    """
    calls: dict[str, list[Node]] = {}
    for node in module.graph.nodes:
        if node.op == "call_module" and type(module.get_submodule(str(node.target))) in operations.ACTIVATIONS:
            calls.setdefault(str(node.target), []).append(node)
    handles: list[RemovableHandle] = []
    for path, nodes in calls.items():
        part, axis = module.get_submodule(path), channel_axis(module, nodes[0])
        # Different widths at the calls of one activation cannot be added channel by channel, and one number has none.
        widths = {channels_at(node, axis) for node in nodes}
        if len(widths) == 1 and (widths != {0} or "shape" not in nodes[0].meta):
            handles.append(part.register_forward_pre_hook(_counting(part, path, axis, states)))
            if estimator != "pooled":
                handles.append(part.register_forward_pre_hook(_estimating(path, axis, bits, estimator)))
    return handles


def _counting(part: nn.Module, path: str, axis: int, states: dict[str, States]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    low, high = knees(part)

    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        z: Tensor = args[0]
        new = count(z, axis, low=low, high=high)
        states[path] = states[path] + new if path in states else new

    return hook


def _estimating(path: str, axis: int, bits: dict[str, BatchMean], estimator: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        new = ESTIMATORS[estimator](args[0], axis)
        bits[path] = bits[path] + new if path in bits else new

    return hook


def knees(part: nn.Module) -> tuple[float, float | None]:
    """Above which input an activation is on, and above which it is in its upper regime, None where it has none.

    The lower one is 0 (the sign, as the papers have it) but for Hardtanh. Above the upper one ReLU6 and Hardtanh are constant,
    Hardswish is the identity.
    """
    if isinstance(part, nn.Hardtanh):  # ReLU6 is one
        # min_val: below it a Hardtanh is constant, and there it is off.
        return float(part.min_val), float(part.max_val)
    return 0.0, 3.0 if isinstance(part, nn.Hardswish) else None


def data_free(module: GraphModule) -> dict[str, float]:
    """Mean bits of the activations that stand right behind a batch norm, from its parameters alone: a pre-screen without data.

    Behind a sum the norms do not describe what the activation sees; such activations have no entry.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    found: dict[str, float] = {}
    for activation in activations(module):
        source = nodes[activation.node].args[0] if activation.node else None
        norm = module.get_submodule(str(source.target)) if isinstance(source, Node) and source.op == "call_module" else None
        # InstanceNorm has no running statistics that beta and gamma would describe over the whole data.
        if type(norm) in operations.PER_CHANNEL_NORMS and isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.affine:
            found[activation.path] = float(from_norm(norm.weight, norm.bias).mean())
    return found
