"""Functions of parameters that are layers: their arguments, and how the layer is made of them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node

_CONV = "input weight bias=None stride=1 padding=0 dilation=1 groups=1"
_UP = "input weight bias=None stride=1 padding=0 output_padding=0 groups=1 dilation=1"


@dataclass(frozen=True)
class Kind:
    """A function: its arguments, the parameters among them, and how the layer is made of the rest."""

    arguments: str
    make: Callable[[dict[str, Any], dict[str, Tensor], Node], nn.Module]
    tensors: tuple[str, ...] = ("weight", "bias")
    buffers: tuple[str, ...] = ()
    transposed: bool = False
    """Whether the weight is (inputs, outputs), the other way round."""


def _convolution(kind: type[Any]) -> Callable[[dict[str, Any], dict[str, Tensor], Node], nn.Module]:
    def make(given: dict[str, Any], tensors: dict[str, Tensor], _: Node) -> nn.Module:
        weight, options = tensors["weight"], {k: v for k, v in given.items() if v is not None}
        groups = given.get("groups", 1)
        sides = (weight.shape[1] * groups, weight.shape[0])
        if "output_padding" in given:  # transposed: (in, out / groups)
            sides = (weight.shape[0], weight.shape[1] * groups)
        return kind(*sides, tuple(weight.shape[2:]), bias="bias" in tensors, **options, device="meta")

    return make


def _linear(given: dict[str, Any], tensors: dict[str, Tensor], _: Node) -> nn.Module:
    out, into = tensors["weight"].shape
    return nn.Linear(into, out, bias="bias" in tensors, device="meta")


def _norm(given: dict[str, Any], tensors: dict[str, Tensor], _: Node) -> nn.Module:
    return nn.LayerNorm(list(given["normalized_shape"]), given["eps"], bool(tensors), "bias" in tensors, device="meta")


def _rms(given: dict[str, Any], tensors: dict[str, Tensor], _: Node) -> nn.Module:
    return nn.RMSNorm(list(given["normalized_shape"]), given["eps"], "weight" in tensors, device="meta")


def _group(given: dict[str, Any], tensors: dict[str, Tensor], node: Node) -> nn.Module:
    return nn.GroupNorm(given["num_groups"], _channels(tensors, node), given["eps"], bool(tensors), device="meta")


_BATCH: dict[int, type[nn.Module]] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}


def _batch(given: dict[str, Any], tensors: dict[str, Tensor], node: Node) -> nn.Module:
    if given["training"] or "running_mean" not in tensors or "running_var" not in tensors:
        raise ValueError("it normalizes by the batch")
    made: Any = _BATCH[len(node.args[0].meta["shape"])]  # pyright: ignore
    affine = not tensors.keys().isdisjoint(("weight", "bias"))
    return made(_channels(tensors, node), given["eps"], given["momentum"], affine, device="meta")


_INSTANCE: dict[int, type[nn.Module]] = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def _instance(given: dict[str, Any], tensors: dict[str, Tensor], node: Node) -> nn.Module:
    if given["running_mean"] is not None or not given["use_input_stats"]:
        raise ValueError("it normalizes by what was seen before")
    made: Any = _INSTANCE[len(node.meta["shape"])]
    return made(_channels(tensors, node), given["eps"], affine=bool(tensors), device="meta")


def _channels(tensors: dict[str, Tensor], node: Node) -> int:
    return len(next(iter(tensors.values()))) if tensors else node.meta["shape"][1]


def _table(given: dict[str, Any], tensors: dict[str, Tensor], _: Node) -> nn.Module:
    entries, width = tensors["weight"].shape
    return nn.Embedding(entries, width, **given, device="meta")


def _prelu(_: dict[str, Any], tensors: dict[str, Tensor], __: Node) -> nn.Module:
    return nn.PReLU(tensors["weight"].numel(), device="meta")


_BATCH_ARGUMENTS = "input running_mean running_var weight=None bias=None training=False momentum=0.1 eps=1e-5"
_INSTANCE_ARGUMENTS = "input running_mean=None running_var=None weight=None bias=None use_input_stats=True momentum=0.1 eps=1e-5"
_TABLE = "input weight padding_idx=None max_norm=None norm_type=2. scale_grad_by_freq=False sparse=False"
_STATISTICS = ("running_mean", "running_var")
KINDS: dict[Any, Kind] = {
    F.conv1d: Kind(_CONV, _convolution(nn.Conv1d)),
    F.conv2d: Kind(_CONV, _convolution(nn.Conv2d)),
    F.conv3d: Kind(_CONV, _convolution(nn.Conv3d)),
    F.conv_transpose1d: Kind(_UP, _convolution(nn.ConvTranspose1d)),
    F.conv_transpose2d: Kind(_UP, _convolution(nn.ConvTranspose2d)),
    F.conv_transpose3d: Kind(_UP, _convolution(nn.ConvTranspose3d)),
    F.linear: Kind("input weight bias=None", _linear),
    F.layer_norm: Kind("input normalized_shape weight=None bias=None eps=1e-5", _norm),
    torch.layer_norm: Kind("input normalized_shape weight=None bias=None eps=1e-5 cudnn_enable=True", _norm),
    F.rms_norm: Kind("input normalized_shape weight=None eps=None", _rms, ("weight",)),
    F.group_norm: Kind("input num_groups weight=None bias=None eps=1e-5", _group),
    F.batch_norm: Kind(_BATCH_ARGUMENTS, _batch, ("weight", "bias", *_STATISTICS), _STATISTICS),
    F.instance_norm: Kind(_INSTANCE_ARGUMENTS, _instance),
    F.prelu: Kind("input weight", _prelu, ("weight",)),
    F.embedding: Kind(_TABLE, _table, ("weight",)),
    torch.addmm: Kind("bias input weight", _linear, transposed=True),
}
_PRODUCT = Kind("input weight", _linear, ("weight",), transposed=True)
KINDS |= dict.fromkeys((torch.matmul, torch.mm, operator.matmul, "matmul", "mm"), _PRODUCT)
