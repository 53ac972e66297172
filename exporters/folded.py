"""Batch norms of a traced model folded into the convolutions in front of them, before a converter takes the model.

A converter takes every norm apart, and puts it into the convolution in the end: the same file, in twice the time.
"""

from __future__ import annotations

import copy
from collections import Counter

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_PAIRS = {nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d, nn.Conv3d: nn.BatchNorm3d}


def folded(model: nn.Module) -> nn.Module:
    """A traced model in eval mode without the norms that nothing but a convolution reaches; any other model as it is."""
    if not isinstance(model, fx.GraphModule):
        return model
    # Its layers are those of the model, in places of their own.
    made = fx.GraphModule(model, copy.deepcopy(model.graph))
    calls = Counter(node.target for node in made.graph.nodes if node.op == "call_module")
    for node in list(made.graph.nodes):
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or {node.op, before.op} != {"call_module"} or len(before.users) > 1:
            continue
        norm, layer = (made.get_submodule(str(one.target)) for one in (node, before))
        alone = calls[node.target] == calls[before.target] == 1
        # Layers of these very kinds: a subclass may compute something else.
        if alone and _PAIRS.get(type(layer)) is type(norm) and getattr(norm, "running_var", None) is not None:  # pyright: ignore[reportArgumentType]
            made.set_submodule(str(before.target), fuse_conv_bn_eval(layer, norm))  # pyright: ignore[reportArgumentType, reportUnknownArgumentType]
            node.replace_all_uses_with(before)
            made.graph.erase_node(node)
    made.delete_all_unused_submodules()
    made.recompile()
    return made
