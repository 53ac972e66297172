"""A convolution with its kernel reduced to 1x1: 1x1, so that a merge with its neighbor has no larger window than that.

    W'[o, i] = sum over u of W[o, i, u]          padding (k - 1) / 2 -> 0,  stride as it is

Sizes stay what they are for every input, and so does the answer to an input that does not change over the window. For all others
it is another layer, which a refit or fine-tuning has to make up for.

Source: dropping convolutions so that merged windows do not grow: Kim, Song, "LayerMerge: Neural Network Depth Compression through
Layer Pruning and Merging", ICML 2024. Departs from it: they put the identity there, which needs as many channels on both sides.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.fx import GraphModule

from compress.edits import Pointwise
from compress.errors import PlanMismatch
from compress.graph import operations
from compress.graph.merge import layer_maps
from compress.graph.merge.affine import Form
from compress.graph.merge.parts import shared


def narrowed(form: Form) -> Form | None:
    """The form of a convolution with its kernel reduced to 1x1; None where it has none, or sizes would not stay."""
    # Only a centered window gives the same number of positions without padding.
    middle = all(2 * p == k - 1 for k, p in zip(form.size, form.padding, strict=True))
    if not form.inputs or form.pointwise or not middle or all(k == 1 for k in form.size):
        return None
    ones, zeros = (1,) * len(form.size), (0,) * len(form.size)
    return Form(form.inputs, form.outputs, form.groups, ones, form.stride, zeros, form.biased)


def pointwise(module: GraphModule, edits: Sequence[Pointwise]) -> GraphModule:
    """A copy of the model in which the named convolutions are 1x1.

    Raises:
        PlanMismatch: a layer that this model does not have, that is no convolution, or whose sizes would change.
    """
    module = copy.deepcopy(module)
    refused, known = shared(module), dict(module.named_modules())
    for edit in edits:
        layer: Any = known.get(edit.layer)
        form = layer_maps.form(layer) if type(layer) in operations.CONVOLUTIONS else "is no convolution of this model"
        made = narrowed(form) if isinstance(form, Form) else None
        if made is None or edit.layer in refused:
            why = form if isinstance(form, str) else refused.get(edit.layer, "its sizes would change, or it has no window")
            raise PlanMismatch(f"The plan makes {edit.layer} a 1x1 convolution: {why}. Run 'compress plan' again.")
        owner, _, name = edit.layer.rpartition(".")
        setattr(module.get_submodule(owner), name, _made(layer, made))
    module.recompile()
    return module


def _made(layer: Any, form: Form) -> nn.Module:
    made = copy.deepcopy(layer)
    # A dilation means nothing for one tap, and layer_maps would refuse it.
    made.kernel_size, made.dilation = form.size, form.size
    layer_maps.pad(made, form.padding)
    axes = tuple(range(2, layer.weight.ndim))
    made.weight = nn.Parameter(layer.weight.detach().sum(axes, keepdim=True), layer.weight.requires_grad)
    return made
