"""A layer of low rank is two low-rank ones: what a merge leaves behind where the layers in the middle were narrow.

    W as (o, i k):  W = U (U^T W)      window first, i -> r channels, then 1x1, r -> o         r (i k + o)
    W as (o k, i):  W = (W V) V^T      1x1 first, i -> r channels, then window, r -> o         r (i s + o k)

multiply-accumulates per position of the output (window of k entries, stride s). U holds the r eigenvectors of W W^T (V: of W^T W)
whose eigenvalues count. In float64 they tell singular values down to 1e-8 of the largest, below what float32 weights can hold: r
is the rank, and nothing but rounding is lost. The first of the two has no bias, so a 1x1 in front of a window keeps the border.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.edits import Factor
from compress.errors import PlanMismatch
from compress.graph.merge import layer_maps
from compress.graph.merge.affine import Form, Kernel
from compress.graph.merge.parts import shared

TOLERANCE = 1e-6
"""Singular values below this share of the largest are rounding: float32 leaves 1e-7 of it or less."""


def factored(layer: nn.Module, tolerance: float = TOLERANCE) -> tuple[nn.Module, nn.Module] | None:
    """Two layers that compute what one does with fewer multiply-accumulates; None where its rank does not allow it.

    Args:
        layer: convolution with one group, or linear layer.
        tolerance: singular values below this share of the largest count as 0.
    """
    form = layer_maps.form(layer)
    if isinstance(form, str) or type(layer) not in layer_maps.LAYERS or form.groups != 1:
        return None
    weight, bias = layer_maps.kernel(layer, form).weight, layer_maps.kernel(layer, form).bias
    taps, ones = math.prod(form.size), (1,) * len(form.size)
    zeros = (0,) * len(form.size)
    rows, columns = weight.flatten(1), weight.movedim(1, -1).flatten(0, -2)
    # W W^T and not an SVD of W: only the smaller side's eigenvectors are needed.
    left, right = _basis(rows @ rows.T, tolerance), _basis(columns.T @ columns, tolerance)
    r, q = left.shape[1], right.shape[1]
    last = r * (form.inputs * taps + form.outputs)
    first = q * (form.inputs * math.prod(form.stride) + form.outputs * taps)
    if not r or min(last, first) >= form.weights:
        return None
    if last <= first:
        window = Form(form.inputs, r, 1, form.size, form.stride, form.padding)
        point = Form(r, form.outputs, 1, ones, ones, zeros, form.biased)
        pair = Kernel(window, (left.T @ rows).view(r, *weight.shape[1:])), Kernel(point, left.view(-1, r, *ones), bias)
    else:
        point = Form(form.inputs, q, 1, ones, ones, zeros)
        window = Form(q, form.outputs, 1, form.size, form.stride, form.padding, form.biased)
        narrow = (columns @ right).view(form.outputs, *form.size, q).movedim(-1, 1)
        pair = Kernel(point, right.T.reshape(q, -1, *ones)), Kernel(window, narrow, bias)
    return layer_maps.layer(pair[0], layer), layer_maps.layer(pair[1], layer)


def _basis(gram: Tensor, tolerance: float) -> Tensor:
    """Eigenvectors that count, (n, rank)."""
    values, vectors = torch.linalg.eigh(gram)
    # squared, as eigenvalues of a Gram matrix are squares; a layer of zeros has rank 0
    return vectors[:, values > tolerance**2 * values[-1].clamp_min(torch.finfo(gram.dtype).tiny)]


def factor(module: GraphModule, edits: Sequence[Factor]) -> GraphModule:
    """A copy of the model in which the named layers are two each, the first under the old name.

    Args:
        module: traced model.
        edits: any number, each for another layer.

    Raises:
        PlanMismatch: a layer that this model does not have, that shares its weights, or whose rank is another.
    """
    module = copy.deepcopy(module)
    refused = shared(module)
    for edit in edits:
        path = edit.layer
        calls = [node for node in module.graph.nodes if node.op == "call_module" and node.target == path]
        pair = factored(module.get_submodule(path)) if calls and path not in refused else None
        if pair is None or rank_of(pair) != edit.rank:
            found = refused.get(path, "its rank does not allow it" if calls else "this model does not have it")
            why = found if pair is None else f"its rank is {rank_of(pair)}"
            raise PlanMismatch(f"The plan makes two layers of rank {edit.rank} of {path}: {why}. Run 'compress plan' again.")
        taken = dict(module.named_modules())
        # Names of earlier edits are taken, too.
        second = next(name for n in itertools.count() if (name := f"{path}_wide{n or ''}") not in taken)
        module.add_submodule(path, pair[0])
        module.add_submodule(second, pair[1])
        with module.graph.inserting_after(calls[0]):
            node = module.graph.call_module(second)
        calls[0].replace_all_uses_with(node)
        node.args = (calls[0],)
        # The first now gives r channels; the shape that others rely on is that of the second.
        node.meta["shape"] = calls[0].meta.pop("shape", None)
    module.recompile()
    return module


def rank_of(pair: tuple[nn.Module, nn.Module]) -> int:
    """Channels between the two layers."""
    return pair[0].get_parameter("weight").shape[0]
