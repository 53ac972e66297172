"""Every operation and layer class that a class-free checkpoint may name. What is not in these tables is refused.

A name in `graph.json` is looked up here and nowhere else: no import, no attribute walk. The tables hold only what computes on
tensors and numbers. To make a new operation or layer storable, add its name to a table; the round-trip test covers it.
"""

from __future__ import annotations

import importlib
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.ops  # pyright: ignore[reportMissingTypeStubs]
from torch import nn

from compress.graph import linearize

_TORCH = """
    abs acos add addcdiv addcmul addmm all amax amin any argmax argmin asin atan atan2 avg_pool1d baddbmm bernoulli bitwise_and
    bitwise_not bitwise_or bmm broadcast_tensors bucketize cat cdist ceil channel_shuffle chunk clamp clamp_max clamp_min clip
    concat conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d cos count_nonzero cross cummax cumprod cumsum
    diag_embed diagonal diff div dot einsum eq erf exp expm1 flatten flip fliplr flipud floor floor_divide fmod frac
    full_like gather ge gt hstack hypot index_select isfinite isinf isnan kthvalue layer_norm le lerp log log10
    log1p log2 log_softmax logaddexp logical_and logical_not logical_or logical_xor logsumexp lt masked_fill matmul max maximum
    mean median meshgrid min minimum mm movedim moveaxis mul multiply narrow ne neg norm ones_like outer permute
    pixel_shuffle pixel_unshuffle polar pow prelu prod rand_like randn_like real reciprocal relu remainder repeat_interleave
    reshape roll rot90 round rsqrt rsub scatter scatter_add select sigmoid sign sin softmax sort split split_with_sizes sqrt
    square squeeze stack std std_mean sub subtract sum swapaxes swapdims t take_along_dim tan tanh tensor_split tensordot tile
    topk transpose tril triu true_divide trunc unbind unflatten unsqueeze var var_mean vstack where zeros_like _assert
"""
_FUNCTIONAL = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    affine_grid alpha_dropout avg_pool1d avg_pool2d avg_pool3d batch_norm bilinear celu conv1d conv2d conv3d conv_transpose1d
    conv_transpose2d conv_transpose3d cosine_similarity dropout dropout1d dropout2d dropout3d elu embedding feature_alpha_dropout
    fold gelu glu grid_sample group_norm gumbel_softmax hardshrink hardsigmoid hardswish hardtanh instance_norm interpolate
    layer_norm leaky_relu linear local_response_norm log_softmax logsigmoid lp_pool1d lp_pool2d lp_pool3d max_pool1d max_pool2d
    max_pool3d max_unpool1d max_unpool2d max_unpool3d mish multi_head_attention_forward normalize one_hot pad pixel_shuffle
    pixel_unshuffle prelu relu relu6 rms_norm rrelu scaled_dot_product_attention selu sigmoid silu softmax softmin softplus
    softshrink softsign tanh tanhshrink threshold unfold upsample upsample_bilinear upsample_nearest
"""
_OPERATOR = """
    abs add and_ eq floordiv ge getitem gt iadd iand ifloordiv imul ior ipow isub itruediv invert le lt matmul mod mul ne neg
    not_ or_ pos pow sub truediv xor
"""
_MATH = "ceil cos exp floor isfinite isinf isnan log log2 pow prod sin sqrt tanh trunc"
_METHODS = """
    abs abs_ add add_ addcdiv addcmul all amax amin any argmax argmin argsort baddbmm bfloat16 bmm bool broadcast_to ceil chunk
    clamp clamp_ clamp_max clamp_min clip clone contiguous cos cumprod cumsum detach diagonal dim div div_ dot double eq erf exp
    exp_ expand expand_as fill_ flatten flip float floor floor_divide fmod gather ge get_device gt half index_add index_fill
    index_select int isfinite isinf isnan kthvalue le lerp log log1p log2 log_softmax logical_and logical_not logical_or
    logsumexp long lt masked_fill masked_fill_ masked_select matmul max maximum mean median min minimum mm moveaxis movedim mul
    mul_ narrow ndimension ne neg neg_ new_empty new_full new_ones new_zeros nonzero norm numel outer permute pow pow_ prelu prod
    reciprocal relu relu_ remainder repeat repeat_interleave reshape reshape_as roll rot90 round rsqrt scatter scatter_
    scatter_add scatter_add_ select sigmoid sigmoid_ sign sin size softmax sort split split_with_sizes sqrt square squeeze
    squeeze_ std stride sub sub_ sum swapaxes swapdims t tan tanh tanh_ tensor_split tile to topk transpose transpose_ tril triu
    true_divide trunc type_as unbind unflatten unfold unsqueeze unsqueeze_ var view view_as where zero_
"""
_WRAPPED = {
    # functions that their module hides from the tracer (torch.fx.wrap); they must stay hidden when traced again
    "torchvision.models.swin_transformer": "_patch_merging_pad _get_relative_position_bias shifted_window_attention",
    "torchvision.models.video.swin_transformer": "_get_window_and_shift_size _get_relative_position_bias _compute_pad_size_3d "
    "_compute_attention_mask_3d shifted_window_attention_3d",
    "torchvision.models.video.mvit": "_unsqueeze _squeeze _add_rel_pos _add_shortcut",
    "torchvision.ops.stochastic_depth": "stochastic_depth",
    "torchvision.ops.drop_block": "drop_block2d drop_block3d",
}
_NAMED_OUTPUTS = {"torchvision.models.googlenet": "GoogLeNetOutputs", "torchvision.models.inception": "InceptionOutputs"}

ATTRIBUTES = frozenset({"shape", "dtype", "device", "ndim", "T", "mT", "H", "mH", "is_cuda", "requires_grad", "real", "imag"})
"""What `getattr` may read from a tensor."""

METHODS = frozenset(name for name in _METHODS.split() if hasattr(torch.Tensor, name))
"""Tensor methods; all of them compute, none reads or writes files, registers hooks or runs a callback."""


def _from(prefix: str, owner: object, names: Iterable[str]) -> dict[str, Callable[..., Any]]:
    return {f"{prefix}.{name}": getattr(owner, name) for name in names if hasattr(owner, name)}


def _from_modules(table: dict[str, str]) -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    for module, names in table.items():
        found |= _from(module, importlib.import_module(module), names.split())
    return found


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **_from("torch", torch, _TORCH.split()),
    **_from("F", F, _FUNCTIONAL.split()),
    **_from("operator", operator, _OPERATOR.split()),
    **_from("math", math, _MATH.split()),
    **_from_modules(_WRAPPED),
    **_from_modules(_NAMED_OUTPUTS),
    "getattr": getattr,
    "len": len,
}
"""Name in graph.json -> function. `getattr` is further held to ATTRIBUTES."""

WRAPPED = frozenset(_from_modules(_WRAPPED)) | {"len"}
"""Functions whose nodes carry torch.fx's mark for wrapped functions."""

FUNCTION_NAMES: dict[Callable[..., Any], str] = {function: name for name, function in reversed(FUNCTIONS.items())}
"""Function -> name; of two names for one function the first in FUNCTIONS wins."""

# Constructor arguments of every layer class. "bias?" stands for `bias = layer.bias is not None`, "a?b" for
# `a = layer.b is not None`, "a<b" for `a = len(layer.b)`. Arguments at their default are not written, so that newer and older
# versions of torch read each other's files.
_CONV = "in_channels out_channels kernel_size stride padding dilation groups bias? padding_mode"
_UPCONV = "in_channels out_channels kernel_size stride padding output_padding groups bias? dilation padding_mode"
_NORM = "num_features eps momentum affine track_running_stats bias?"
_MAXPOOL = "kernel_size stride padding dilation return_indices ceil_mode"
_AVGPOOL = "kernel_size stride padding ceil_mode count_include_pad"
_RECURRENT = "input_size hidden_size num_layers bias batch_first dropout bidirectional"
_FIELDS: dict[str, str] = {
    "Conv1d Conv2d Conv3d": _CONV,
    "ConvTranspose1d ConvTranspose2d ConvTranspose3d": _UPCONV,
    "Linear": "in_features out_features bias?",
    "Bilinear": "in1_features in2_features out_features bias?",
    "BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d": _NORM,
    "GroupNorm": "num_groups num_channels eps affine bias?",
    "LayerNorm": "normalized_shape eps elementwise_affine bias?",
    "RMSNorm": "normalized_shape eps elementwise_affine",
    "LocalResponseNorm CrossMapLRN2d": "size alpha beta k",
    "ReLU ReLU6 SELU SiLU Mish Hardswish Hardsigmoid": "inplace",
    "Sigmoid Tanh Tanhshrink Softsign LogSigmoid Softmax2d Identity": "",
    "GELU": "approximate",
    "ELU CELU": "alpha inplace",
    "LeakyReLU": "negative_slope inplace",
    "PReLU": "num_parameters",
    "RReLU": "lower upper inplace",
    "Hardtanh": "min_val max_val inplace",
    "Threshold": "threshold value inplace",
    "Softplus": "beta threshold",
    "Hardshrink Softshrink": "lambd",
    "GLU Softmax LogSoftmax Softmin": "dim",
    "MaxPool1d MaxPool2d MaxPool3d": _MAXPOOL,
    "AvgPool1d": _AVGPOOL,
    "AvgPool2d AvgPool3d": _AVGPOOL + " divisor_override",
    "LPPool1d LPPool2d LPPool3d": "norm_type kernel_size stride ceil_mode",
    "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d": "output_size",
    "AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d": "output_size return_indices",
    "MaxUnpool1d MaxUnpool2d MaxUnpool3d": "kernel_size stride padding",
    "Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout": "p inplace",
    "ZeroPad1d ZeroPad2d ZeroPad3d ReflectionPad1d ReflectionPad2d ReflectionPad3d": "padding",
    "ReplicationPad1d ReplicationPad2d ReplicationPad3d CircularPad1d CircularPad2d CircularPad3d": "padding",
    "ConstantPad1d ConstantPad2d ConstantPad3d": "padding value",
    "Upsample": "size scale_factor mode align_corners recompute_scale_factor",
    "UpsamplingNearest2d UpsamplingBilinear2d": "size scale_factor",
    "PixelShuffle": "upscale_factor",
    "PixelUnshuffle": "downscale_factor",
    "ChannelShuffle": "groups",
    "Flatten": "start_dim end_dim",
    "Unflatten": "dim unflattened_size",
    "Fold": "output_size kernel_size dilation padding stride",
    "Unfold": "kernel_size dilation padding stride",
    "Embedding": "num_embeddings embedding_dim padding_idx max_norm norm_type scale_grad_by_freq sparse",
    "CosineSimilarity": "dim eps",
    "MultiheadAttention": "embed_dim num_heads dropout bias?in_proj_bias add_bias_kv?bias_k add_zero_attn kdim vdim batch_first",
    "RNN": "nonlinearity " + _RECURRENT,
    "LSTM": _RECURRENT + " proj_size",
    "GRU": _RECURRENT,
}
_VISION_FIELDS = {"StochasticDepth": "p mode", "DropBlock2d DropBlock3d": "p block_size eps inplace"}
_VISION_FIELDS["FrozenBatchNorm2d"] = "num_features<weight eps"
_OUR_FIELDS = {"Line": "channels axis"}


def _classes(owner: object, table: dict[str, str]) -> dict[str, tuple[type[nn.Module], tuple[str, ...]]]:
    pairs = [(name, fields) for names, fields in table.items() for name in names.split()]
    return {name: (getattr(owner, name), tuple(fields.split())) for name, fields in pairs if hasattr(owner, name)}


LAYERS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = (
    _classes(nn, _FIELDS) | _classes(torchvision.ops, _VISION_FIELDS) | _classes(linearize, _OUR_FIELDS)
)
"""Name in graph.json -> (layer class, constructor arguments to recover)."""

LAYER_NAMES: dict[type[nn.Module], str] = {kind: name for name, (kind, _) in LAYERS.items()}


def recover(layer: nn.Module, field: str) -> tuple[str, Any]:
    """Name and value of one constructor argument, read from the layer's attributes."""
    if "<" in field:
        argument, attribute = field.split("<")
        return argument, len(getattr(layer, attribute))
    if "?" in field:
        argument, attribute = field.split("?")
        return argument, _is_there(getattr(layer, attribute or argument))
    return field, getattr(layer, field)


def _is_there(value: object) -> bool:
    # recurrent layers keep the flag itself, the others the tensor or None
    return value if isinstance(value, bool) else value is not None


def build(kind: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A layer of the table on the meta device: no memory, no initialisation.

    Raises:
        ValueError: unknown class or argument, or what the constructor itself refuses.
    """
    if kind not in LAYERS:
        raise ValueError(f"layer class {kind!r} is not known")
    cls, fields = LAYERS[kind]
    known = {re.split("[?<]", field)[0] for field in fields}
    if unknown := set(arguments) - known:
        raise ValueError(f"{kind} has no argument {min(unknown)!r}")
    if arguments.get("num_layers", 1) > 1000:
        raise ValueError("more than 1000 recurrent layers")
    with torch.device("meta"):
        return cls(**arguments)
