"""Affine functions in place of activations: what makes a network shallower.

    y_c = slope_c x_c + offset_c        for each channel c, on the axis where the channels are

A channel that is always on is (1, 0), one that is always off (0, 0): it is constant then, and can be removed. What stands
between two layers and is an affine function can be merged with them. Where an affine function comes from is not known here; a
plan brings its numbers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from compress.edits import Linearize
from compress.errors import PlanMismatch
from compress.graph import operations
from compress.graph.channel_affine import channel_affine
from compress.user.wording import many

_PASSING = operations.POOLS | operations.SAME


@dataclass(frozen=True)
class Activation:
    """Where an activation acts.

    Attributes:
        path: of the activation module; what a plan calls the activation.
        node: name of its node; empty inside a submodule that is kept whole.
        axis: of the channels, 1 or -1.
        refused: why no affine function can stand here.
    """

    path: str
    node: str
    axis: int = 1
    refused: str | None = None


def activations(module: GraphModule) -> tuple[Activation, ...]:
    """Every activation of a traced model in graph order, then those inside submodules that would not trace."""
    calls: dict[str, list[Node]] = {}
    for node in module.graph.nodes:
        if node.op == "call_module" and type(module.get_submodule(str(node.target))) in operations.ACTIVATIONS:
            calls.setdefault(str(node.target), []).append(node)
    found = [
        Activation(path, nodes[0].name, channel_axis(module, nodes[0]), _refused(module, path, nodes))
        # The first call serves for all: of an activation with several calls _refused says no in any case.
        for path, nodes in calls.items()
    ]
    opaque: dict[str, str] = module.meta.get("opaque", {})
    for path, why in opaque.items():
        for name, part in module.get_submodule(path).named_modules(prefix=path):
            if type(part) in operations.ACTIVATIONS:
                found.append(Activation(name, "", refused=f"it lies inside {path}, which stays whole because it {why}"))
    return tuple(found)


def channel_axis(module: GraphModule, node: Node) -> int:
    """Axis of the channels at an activation's input: -1 behind linear layers and layer norms, else 1.

    Looked for backwards through what leaves axes where they are: sums, pooling, dropout, other activations.
    """
    source = node.args[0] if node.args else None
    while isinstance(source, Node):
        if source.op == "call_module":
            kind = type(module.get_submodule(str(source.target)))
            if kind is nn.Linear or kind in operations.LAST_AXES_NORMS:
                # Linear layers and layer norms work on the last axis, whatever lies in front of it.
                return -1
            if kind not in _PASSING:
                return 1
        elif source.target not in operations.ELEMENTWISE and source.target not in operations.ELEMENTWISE_METHODS:
            return 1
        # One operand is enough: what is added up element by element has its channels on the same axis.
        source = next((a for a in source.args if isinstance(a, Node)), None)
    return 1


def linearize(module: GraphModule, edits: Sequence[Linearize]) -> GraphModule:
    """A copy of the model with an affine function (or, where that is what the affine function is, an identity) at each named
    activation.

    Args:
        module: traced model whose shapes have been noted since the last surgery (`trace.note_shapes`).
        edits: any number, each for another activation.

    Raises:
        PlanMismatch: a activation that does not exist, is named twice, has another number of channels, or cannot be linearized.
    """
    if any("shape" not in node.meta for node in module.graph.nodes):
        raise ValueError("the shapes of the model are not known; call note_shapes first")
    # Models are never changed in place: the pipeline goes back to the one before when a stage is not worth it.
    module = copy.deepcopy(module)
    known = {activation.path: activation for activation in activations(module)}
    nodes = {node.name: node for node in module.graph.nodes}
    # pop, so that an activation that is named twice is not found the second time.
    for edit in edits:
        activation = known.pop(edit.layer, None)
        if activation is None:
            raise PlanMismatch(
                f"The plan linearizes {edit.layer}, which is no activation of this model or is named twice. "
                "Run 'compress plan' again."
            )
        if activation.refused is not None:
            raise PlanMismatch(
                f"The plan linearizes {edit.layer}, which cannot be: {activation.refused}. Leave that edit out, or plan again."
            )
        if (channels := channels_at(nodes[activation.node], activation.axis)) != edit.channels:
            raise PlanMismatch(
                f"The plan expects {many(edit.channels, 'channel')} at {edit.layer}, this model has {channels}. "
                "Run 'compress plan' again."
            )
        owner, _, name = edit.layer.rpartition(".")
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        # the numbers of a plan know neither device nor mode
        setattr(module.get_submodule(owner), name, _made(edit, activation.axis).to(device).train(module.training))
    module.recompile()
    return module


def _made(edit: Linearize, axis: int) -> nn.Module:
    # An identity costs nothing at run time and leaves no parameters for fine-tuning to move away from it.
    if all(m == 1 for m in edit.slope) and not any(edit.offset):
        return nn.Identity()
    return channel_affine(torch.tensor(edit.slope), torch.tensor(edit.offset), axis)


def channels_at(node: Node, axis: int) -> int:
    """How many channels the value of a node has on an axis, 0 where it has none or its shape is not noted."""
    shape: Any = node.meta.get("shape")
    return int(shape[axis]) if isinstance(shape, tuple) and len(shape) > 1 else 0


def _refused(module: GraphModule, path: str, nodes: Sequence[Node]) -> str | None:
    part: Any = module.get_submodule(path)
    if len(nodes) > 1:
        return f"it is called {len(nodes)} times and has one set of slopes for all of them"
    if part._forward_hooks or part._forward_pre_hooks:
        return "it has hooks, which may change what it computes"
    node = nodes[0]
    source = node.args[0] if node.args else None
    if not isinstance(source, Node) or len(node.args) > 1 or node.kwargs:
        return "it is called with more than one argument"
    # Shapes may be missing (a plain look at the model); only a shape that is there can speak against it.
    if "shape" in node.meta and not channels_at(node, 1):
        return "its input has no channels"
    order = list(module.graph.nodes)
    # Out of place, the affine function would leave the raw value to consumers that used to see the activated one.
    later = [user for user in source.users if user is not node and order.index(user) > order.index(node)]
    if getattr(part, "inplace", False) and later:
        return f"it works in place on a value that {later[0].name} reads, too"
    return None
