"""Which family an operation or a layer belongs to. What stands in no table here freezes what it touches."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.ops  # pyright: ignore[reportMissingTypeStubs]
from torch import nn


def _layers(names: str) -> frozenset[type[nn.Module]]:
    return frozenset(getattr(nn, name) for name in names.split())


def _functions(names: str, *owners: Any) -> frozenset[Callable[..., Any]]:
    return frozenset(getattr(owner, name) for name in names.split() for owner in owners if hasattr(owner, name))


def _words(names: str) -> frozenset[str]:
    return frozenset(names.split())


# ---- layers ----------------------------------------------------------------------------------------------------------------

SAME = _layers(
    "ReLU ReLU6 LeakyReLU RReLU ELU SELU CELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh Softplus Sigmoid Tanh LogSigmoid "
    "Softsign Hardshrink Softshrink Tanhshrink Threshold Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout "
    "FeatureAlphaDropout"
) | {torchvision.ops.StochasticDepth}
"""Each entry for itself."""
RECTIFIERS = _layers("ReLU ReLU6 LeakyReLU RReLU ELU SELU CELU GELU SiLU Mish Hardswish Hardtanh PReLU")
"""Activations that pass a large input on, or nearly so (Hardtanh, ReLU6: up to a limit): those that a line can stand for."""
POOLS = _layers(
    "MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d LPPool1d LPPool2d AdaptiveAvgPool1d AdaptiveAvgPool2d "
    "AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d Upsample UpsamplingNearest2d UpsamplingBilinear2d "
    "ZeroPad1d ZeroPad2d ConstantPad1d ConstantPad2d ReflectionPad1d ReflectionPad2d ReplicationPad1d ReplicationPad2d "
    "CircularPad1d CircularPad2d"
)
"""Each channel (axis 1) for itself."""
CONVOLUTIONS = _layers("Conv1d Conv2d Conv3d")
TRANSPOSED = _layers("ConvTranspose1d ConvTranspose2d ConvTranspose3d")
PER_CHANNEL_NORMS = _layers("BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d")
LAST_AXES_NORMS = _layers("LayerNorm RMSNorm")
SOFTMAXES = _layers("Softmax LogSoftmax Softmin")
PIXEL_SHUFFLES = _layers("PixelShuffle PixelUnshuffle")

# ---- functions and tensor methods ------------------------------------------------------------------------------------------

_ELEMENTWISE = (
    "add sub mul div neg pow exp log log1p sqrt rsqrt abs square clamp clamp_min clamp_max clip sin cos erf sigmoid tanh relu "
    "maximum minimum where gt lt ge le eq ne logical_and logical_or logical_not floor ceil round sign reciprocal expm1 lerp "
    "addcmul addcdiv multiply subtract true_divide divide"
)
ELEMENTWISE = (
    _functions(_ELEMENTWISE, torch)
    | _functions("add iadd sub isub mul imul truediv itruediv neg pow gt lt ge le eq ne and_ or_ invert", operator)
    | _functions("relu leaky_relu gelu silu dropout elu selu celu mish hardswish hardsigmoid hardtanh softplus relu6", F)
)
ELEMENTWISE_METHODS = _words(_ELEMENTWISE) | _words(
    "add_ sub_ mul_ div_ neg_ clamp_ clamp_min_ clamp_max_ sigmoid_ tanh_ exp_ pow_ relu_ masked_fill "
    "masked_fill_ __add__ __mul__"
)
CASTS = _words("float double half bool to type type_as contiguous clone detach")
"""The same entries, whatever else they are called with."""
POOLING = _functions(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d interpolate adaptive_avg_pool1d "
    "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d",
    F,
    torch,
)
_REDUCTIONS = "mean sum amax amin std var"
REDUCTIONS, REDUCTION_METHODS = _functions(_REDUCTIONS, torch), _words(_REDUCTIONS)
ALONG = _words("softmax log_softmax normalize cumsum cumprod roll")
ALONG_FUNCTIONS = _functions(" ".join(ALONG), torch, F)
"""They mix the entries along one axis; the channels of every other axis pass, as long as the shape stays."""
_MOVEMENT = "flatten permute transpose swapaxes swapdims movedim moveaxis unsqueeze flip t tile"
MOVEMENT, MOVEMENT_METHODS = _functions(_MOVEMENT, torch), _words(_MOVEMENT + " expand_as repeat")
"""Pure data movement without sizes: the real operation is called on the atoms."""
_SIZED = "reshape chunk split unflatten squeeze"
SIZED, SIZED_METHODS = _functions(_SIZED, torch), _words(_SIZED + " view expand")
"""Data movement with sizes, which surgery rewrites."""
PIXELS = _functions("pixel_shuffle pixel_unshuffle", F)
JOINS = frozenset({torch.cat, torch.concat, torch.stack})
PRODUCTS, PRODUCT_METHODS = frozenset({torch.matmul, torch.bmm, operator.matmul}), _words("matmul bmm")
SIZE_METHODS = _words("size dim numel ndimension __len__")
ATTRIBUTES = _words("shape ndim T mT")
FUNCTIONAL_CONVOLUTIONS = frozenset({F.conv1d, F.conv2d, F.conv3d})
FUNCTIONAL_LAYERS = FUNCTIONAL_CONVOLUTIONS | {F.linear, F.layer_norm, F.batch_norm}
