"""Batch norms folded into the layer before them, for as long as weights are being fitted, and taken apart again afterwards.

In eval mode a norm is s z + t with s = gamma / sqrt(var + eps), t = beta - s mean, so layer and norm together are one layer

    W' = s W        b' = s b + t

Fitting W', b' needs no word about norms. Taken apart again, with z's real mean and variance on the calibration images,

    W = W' / s    mean = E z    var = Var z    gamma = s sqrt(var + eps)    beta = b' + s mean

eval mode gives the fitted output, and the statistics of a batch in train mode agree with the running ones: fine-tuning starts
from the fitted function, not beside it.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.graph.operations import CONVOLUTIONS, TRANSPOSED
from compress.graph.trace.sharing import sharing, without_in_place

_LAYERS = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# Such a channel is dead; dividing the fitted weights by it would overflow.
_TINY = 1e-6  # |s| below it cannot be divided by


@dataclass(frozen=True)
class Pair:
    """A layer and the norm that alone reads its output."""

    layer: str
    norm: str


def pairs(module: GraphModule) -> tuple[Pair, ...]:
    """Layers with a norm behind them on the same axis, each called once, with weights of their own."""
    calls: dict[str, int] = {}
    for node in module.graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    names = [id(p) for _, p in module.named_parameters(remove_duplicate=False)]
    shared = {one for one, number in Counter(names).items() if number > 1}
    found: list[Pair] = []
    for node in module.graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        # A second reader of the layer would see the folded scale.
        if not isinstance(source, torch.fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        norm, layer = module.get_submodule(str(node.target)), module.get_submodule(str(source.target))
        once = calls[str(node.target)] == calls[str(source.target)] == 1
        # Two calls see different statistics; without running ones there is nothing to fold.
        if not once or not isinstance(norm, _NORMS) or type(layer) not in _LAYERS or norm.running_mean is None:
            continue
        # Behind a linear layer on tokens, a BatchNorm1d's axis 1 is tokens and not outputs.
        rows_only = type(layer) is not nn.Linear or len(source.meta.get("shape", (0, 0))) == 2
        if rows_only and not any(id(p) in shared for part in (norm, layer) for p in part.parameters()):
            found.append(Pair(str(source.target), str(node.target)))
    return tuple(found)


def fold(module: GraphModule, read: bool = False) -> GraphModule:
    """A copy in which every pair is one layer with a bias and the norm is an identity. Node names stay.

    Args:
        module: the model.
        read: whether nothing is changed where it lies: what is not folded is the model's own then, and takes no memory.
    """
    folded = sharing(module, single=False) if read else copy.deepcopy(module)
    for pair in pairs(module):
        layer: Any = folded.get_submodule(pair.layer)
        scale, shift = affine(folded.get_submodule(pair.norm))
        with torch.no_grad():
            bias = shift if layer.bias is None else shift + scale * layer.bias
            # A new Parameter, since the old one may be shared with the model that is not folded.
            layer.weight = nn.Parameter(layer.weight * _along(scale, layer))
            layer.bias = nn.Parameter(bias.clone())
        _replace(folded, pair.norm, nn.Identity())
    without_in_place(folded)  # stored values must survive the layers that read them
    return folded


def unfold(module: GraphModule, folded: GraphModule, outputs: Mapping[str, tuple[Tensor, Tensor]]) -> GraphModule:
    """Write fitted weights back into a model with norms.

    Args:
        module: the model before it was folded.
        folded: the same model folded, its weights fitted since.
        outputs: mean and variance per channel of each paired layer's output in `folded`, by layer path.

    Returns:
        A copy of `module` that computes what `folded` does.
    """
    result = copy.deepcopy(module)
    norms = {pair.layer: pair.norm for pair in pairs(module)}
    for path, fitted in cast(Iterator[tuple[str, nn.Module]], folded.named_modules()):
        if isinstance(fitted, _NORMS) and fitted.running_mean is not None:  # it was not folded; its statistics may be new
            own: Any = result.get_submodule(path)
            own.running_mean.copy_(fitted.running_mean)
            own.running_var.copy_(fitted.running_var)
        if type(fitted) not in _LAYERS:
            continue
        layer: Any = result.get_submodule(path)
        with torch.no_grad():
            if path in norms:
                _take_apart(layer, result.get_submodule(norms[path]), fitted, outputs[path])
            else:
                _copy(layer, fitted)
    return result


def affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift of a norm in eval mode, (c,) each."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -scale * norm.running_mean
    return scale.detach(), (shift if norm.bias is None else shift + norm.bias).detach()


def _take_apart(layer: Any, norm: Any, fitted: Any, output: tuple[Tensor, Tensor]) -> None:
    scale, _ = affine(norm)
    # A norm without gamma has no place for a scale but its variance, which must keep the true one.
    scale = torch.where(scale.abs() < _TINY, torch.ones_like(scale), scale) if norm.weight is not None else scale
    mean, variance = (t.to(scale) for t in output)
    layer.weight.copy_(fitted.weight / _along(scale, fitted))
    if layer.bias is not None:
        # The norm subtracts its mean anyway: a bias before it says nothing.
        layer.bias.zero_()
    if norm.weight is None or norm.bias is None:
        # Without gamma and beta only the running statistics can hold scale and shift.
        # clamp: 1 / s^2 - eps can fall below 0 where the variance was tiny.
        norm.running_var.copy_((scale.square().reciprocal() - norm.eps).clamp_min(0))
        norm.running_mean.copy_(-fitted.bias / scale)
        return
    raw_mean, raw_variance = (mean - fitted.bias) / scale, variance / scale.square()
    norm.running_mean.copy_(raw_mean)
    norm.running_var.copy_(raw_variance)
    norm.weight.copy_(scale * torch.sqrt(raw_variance + norm.eps))
    norm.bias.copy_(fitted.bias + scale * raw_mean)


def _copy(layer: Any, fitted: Any) -> None:
    layer.weight.copy_(fitted.weight)
    if fitted.bias is not None:
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.empty_like(fitted.bias))
        layer.bias.copy_(fitted.bias)


def _along(scale: Tensor, layer: Any) -> Tensor:
    """One factor per output, along the axes of the layer's weight: (out, in, ...), or (in, out of a group, ...)."""
    rest = [1] * (layer.weight.ndim - 2)
    if type(layer) not in TRANSPOSED:
        return scale.view(-1, 1, *rest)
    return scale.view(layer.groups, -1).repeat_interleave(len(layer.weight) // layer.groups, 0).view(len(layer.weight), -1, *rest)


def _replace(module: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, new)
