"""The one table of operations and layers: what every concern of the package knows of each of them.

    rule       what the channel solver does with it (`channels/dispatch.py`); where there is none it freezes what it touches
    storable   all of it: a class-free checkpoint may name what stands here, and nothing else (`checkpoint/allowlist.py`)
    fields     constructor arguments of a layer, for the checkpoint
    activation a layer that can be linearized (`linearize.py`)
    merges     a layer that is an affine map, so that it can be merged (`merge/layer_maps.py`)

So an operation that can be pruned can be saved, and one that is forgotten in one place is forgotten in all. What multiplies is
counted below this level, by torch itself (`measure/cost.py`).

`graph.json` of a stranger names its operations by these words: nothing here may read or write files, import or call back.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
import torchvision.ops  # pyright: ignore[reportMissingTypeStubs]
from torch import nn

from compress.graph.channel_affine import ChannelAffine
from compress.graph.partial_norm import PartialNorm


@dataclass(frozen=True)
class Operations:
    """Functions and tensor methods that are treated alike; names that a version of torch lacks are passed over."""

    rule: str = ""
    torch: str = ""
    functional: str = ""
    operator: str = ""
    methods: str = ""
    linalg: str = ""
    fft: str = ""


@dataclass(frozen=True)
class Layers:
    """Layer classes that are treated alike.

    In `fields`, "bias?" stands for `bias = layer.bias is not None`, "a?b" for `a = layer.b is not None`, "a<b" for
    `a = len(layer.b)`.
    """

    names: str
    fields: str = ""
    rule: str = ""
    activation: bool = False
    merges: bool = False
    owner: Any = nn


_ELEMENTWISE = (
    "abs absolute acos add addcdiv addcmul arctan asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or ceil "
    "clamp clamp_max clamp_min clip copysign cos cosh digamma div divide eq erf erfc erfinv exp exp2 expm1 float_power floor "
    "floor_divide fmax fmin fmod frac ge gt heaviside hypot isfinite isinf isnan le lerp lgamma log log10 log1p log2 logaddexp "
    "logaddexp2 logical_and logical_not logical_or logical_xor logit lt masked_fill maximum minimum mul multiply nan_to_num ne "
    "neg negative positive pow reciprocal relu remainder round rsqrt sgn sigmoid sign sin sinc sinh sqrt square sub subtract "
    "tan tanh true_divide trunc where xlogy"
)
_REDUCTIONS = "all amax amin any count_nonzero logsumexp mean nanmean nanquantile nansum norm prod quantile std sum var"
_SELECTIONS = "argmax argmin argsort aminmax cummax cummin kthvalue max median min mode nanmedian sort topk"
_FFT = "fft ifft rfft irfft hfft ihfft"
_FOURIER = f"{_FFT} {' '.join(name + axes for name in _FFT.split() for axes in '2n')} fftshift ifftshift"
_MOVEMENT = "flatten flip moveaxis movedim permute swapaxes swapdims t tile transpose unsqueeze"
_SIZED = "chunk reshape split squeeze unflatten"

OPERATIONS: tuple[Operations, ...] = (
    Operations(
        "elementwise",  # each entry for itself
        torch=_ELEMENTWISE + " clone ones_like rsub zeros_like",
        functional="celu dropout elu gelu hardsigmoid hardswish hardtanh leaky_relu mish relu relu6 selu silu softplus",
        operator="abs add and_ eq floordiv ge gt iadd iand imul invert ior isub itruediv le lt mod mul ne neg or_ pos pow sub "
        "truediv xor",
        methods=_ELEMENTWISE + " add_ sub_ mul_ div_ neg_ clamp_ clamp_min_ clamp_max_ sigmoid_ tanh_ exp_ pow_ relu_ "
        "masked_fill_ copy_ __add__ __mul__",
    ),
    Operations(
        "cast", methods="bfloat16 bool clone contiguous detach double float half int long to type type_as"
    ),  # the same entries
    Operations(
        "spatial",  # each channel (axis 1) for itself
        torch="avg_pool1d max_pool1d max_pool2d max_pool3d adaptive_max_pool1d",
        functional="adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d "
        "avg_pool1d avg_pool2d avg_pool3d interpolate lp_pool1d lp_pool2d max_pool1d max_pool2d max_pool3d",
    ),
    Operations("reduction", torch=_REDUCTIONS + " std_mean var_mean", methods=_REDUCTIONS, linalg="matrix_norm norm vector_norm"),
    # entries along one axis are compared, and some of them (or their places) are given; max and min also take two tensors
    Operations("selection", torch=_SELECTIONS, methods=_SELECTIONS),
    Operations("fourier", fft=_FOURIER),  # mixes the entries of its axes; channels on others pass
    Operations("complex", torch="view_as_complex view_as_real real imag"),
    Operations("gathered", torch="gather index_select take_along_dim", methods="gather index_select take_along_dim"),
    Operations(
        "along",  # the entries along one axis mix; the channels of every other axis pass, as long as the shape stays
        torch="cumprod cumsum log_softmax roll softmax",
        functional="log_softmax normalize softmax",
        methods="cumprod cumsum log_softmax roll softmax",
    ),
    # data that only moves: the real operation is called on the atoms; "sized" has sizes among its arguments
    Operations("movement", torch=_MOVEMENT, methods=_MOVEMENT + " expand_as repeat"),
    Operations("sized", torch=_SIZED, methods=_SIZED + " view expand"),
    Operations("shaped as", methods="reshape_as view_as"),
    Operations("pixels", functional="pixel_shuffle pixel_unshuffle", torch="pixel_shuffle pixel_unshuffle"),
    Operations("join", torch="cat concat stack"),
    Operations("product", torch="bmm matmul mm", operator="matmul", methods="bmm matmul mm"),
    Operations("einsum", torch="einsum"),
    Operations("size", methods="size dim numel ndimension __len__"),  # plain numbers
    Operations("repeated", torch="repeat_interleave", methods="repeat_interleave"),
    Operations("picked", operator="getitem"),
    Operations("written", torch="slice_scatter"),  # a part of an axis is another tensor
    Operations("windows", functional="unfold fold", methods="unfold"),
    Operations("unbound", torch="unbind", methods="unbind"),
    Operations("shuffled", torch="channel_shuffle"),
    Operations("gated", functional="glu"),
    Operations("cosine", functional="cosine_similarity"),
    Operations("padded", functional="pad"),
    Operations("sampled", functional="grid_sample"),  # at places that are the same for all channels
    Operations("attention", functional="scaled_dot_product_attention"),
    # layers as functions, on parameters
    Operations("convolution", torch="conv1d conv2d conv3d", functional="conv1d conv2d conv3d"),
    Operations("linear", functional="linear"),
    Operations("functional norm", functional="batch_norm layer_norm"),
    Operations("functional prelu", torch="prelu", functional="prelu", methods="prelu"),
    Operations(  # no rule: they freeze the channels that they touch
        torch="acosh addmm arange baddbmm bernoulli broadcast_tensors bucketize cdist "
        "conv_transpose1d conv_transpose2d conv_transpose3d cross diag_embed diagonal diff dot empty eye fliplr flipud full "
        "full_like hstack layer_norm istft linspace meshgrid narrow ones outer polar rand_like randn_like rot90 scatter "
        "scatter_add select split_with_sizes stft tensor_split tensordot tril triu vstack zeros _assert",
        functional="adaptive_max_pool3d affine_grid alpha_dropout bilinear conv_transpose1d conv_transpose2d conv_transpose3d "
        "dropout1d dropout2d dropout3d embedding feature_alpha_dropout group_norm "
        "gumbel_softmax hardshrink instance_norm local_response_norm logsigmoid lp_pool3d max_unpool1d max_unpool2d max_unpool3d "
        "multi_head_attention_forward one_hot rms_norm rrelu sigmoid softmin softshrink softsign tanh tanhshrink threshold "
        "pairwise_distance upsample upsample_bilinear upsample_nearest",
        operator="ifloordiv ipow not_ setitem",
        methods="abs_ baddbmm broadcast_to diagonal dot fill_ get_device index_add index_add_ index_copy "
        "index_copy_ index_fill index_fill_ masked_select narrow new_empty new_full new_ones "
        "new_zeros nonzero outer rot90 scatter scatter_ scatter_add scatter_add_ select "
        "split_with_sizes squeeze_ stride tensor_split transpose_ tril triu unsqueeze_ zero_",
    ),
)

_CONV = "in_channels out_channels kernel_size stride padding dilation groups bias? padding_mode"
_UPCONV = "in_channels out_channels kernel_size stride padding output_padding groups bias? dilation padding_mode"
_NORM = "num_features eps momentum affine track_running_stats bias?"
_MAXPOOL = "kernel_size stride padding dilation return_indices ceil_mode"
_AVGPOOL = "kernel_size stride padding ceil_mode count_include_pad"
_RECURRENT = "input_size hidden_size num_layers bias batch_first dropout bidirectional"

LAYERS: tuple[Layers, ...] = (
    # each entry for itself; an activation passes a large input on, or nearly so (Hardtanh, ReLU6: up to a limit)
    Layers("ReLU ReLU6 SELU SiLU Mish Hardswish", "inplace", "same", activation=True),
    Layers("ELU CELU", "alpha inplace", "same", activation=True),
    Layers("LeakyReLU", "negative_slope inplace", "same", activation=True),
    Layers("RReLU", "lower upper inplace", "same", activation=True),
    Layers("GELU", "approximate", "same", activation=True),
    Layers("Hardtanh", "min_val max_val inplace", "same", activation=True),
    Layers("PReLU", "num_parameters", "prelu", activation=True),
    Layers("Hardsigmoid", "inplace", "same"),
    Layers("Sigmoid Tanh Tanhshrink Softsign LogSigmoid Identity", "", "same"),
    Layers("Softplus", "beta threshold", "same"),
    Layers("Hardshrink Softshrink", "lambd", "same"),
    Layers("Threshold", "threshold value inplace", "same"),
    Layers("Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout", "p inplace", "same"),
    Layers("StochasticDepth", "p mode", "same", owner=torchvision.ops),
    # each channel (axis 1) for itself
    Layers("MaxPool1d MaxPool2d MaxPool3d", _MAXPOOL, "spatial"),
    Layers("AvgPool1d", _AVGPOOL, "spatial", merges=True),
    Layers("AvgPool2d AvgPool3d", _AVGPOOL + " divisor_override", "spatial", merges=True),
    Layers("LPPool1d LPPool2d", "norm_type kernel_size stride ceil_mode", "spatial"),
    Layers("AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d", "output_size", "spatial"),
    Layers("AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d", "output_size return_indices", "spatial"),
    Layers("Upsample", "size scale_factor mode align_corners recompute_scale_factor", "spatial"),
    Layers("UpsamplingNearest2d UpsamplingBilinear2d", "size scale_factor", "spatial"),
    Layers("ZeroPad1d ZeroPad2d ReflectionPad1d ReflectionPad2d ReplicationPad1d ReplicationPad2d", "padding", "spatial"),
    Layers("CircularPad1d CircularPad2d", "padding", "spatial"),
    Layers("ConstantPad1d ConstantPad2d", "padding value", "spatial"),
    # with parameters
    Layers("Conv1d Conv2d Conv3d", _CONV, "convolution", merges=True),
    Layers("ConvTranspose1d ConvTranspose2d ConvTranspose3d", _UPCONV, "transposed"),
    Layers("Linear", "in_features out_features bias?", "linear", merges=True),
    Layers(
        "BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d", _NORM, "channel norm"
    ),
    Layers("GroupNorm", "num_groups num_channels eps affine bias?", "group norm"),
    Layers("LayerNorm", "normalized_shape eps elementwise_affine bias?", "last axes norm"),
    Layers("RMSNorm", "normalized_shape eps elementwise_affine", "last axes norm"),
    # not stored under this name today, but files of earlier versions are
    Layers("Line", "channels axis", "channel affine", owner=SimpleNamespace(Line=ChannelAffine)),  # as files have called it
    Layers(
        "PartialNorm", "channels of eps axis centered weight? bias?", "joint norm", owner=SimpleNamespace(PartialNorm=PartialNorm)
    ),
    # units that the layer itself reads in the next step
    Layers("RNN", "nonlinearity " + _RECURRENT, "recurrent"),
    Layers("LSTM", _RECURRENT + " proj_size", "recurrent"),
    Layers("GRU", _RECURRENT, "recurrent"),
    Layers("RNNCell", "input_size hidden_size bias nonlinearity", "recurrent"),
    Layers("LSTMCell GRUCell", "input_size hidden_size bias", "recurrent"),
    # entries that move or mix along one axis
    Layers("Flatten", "start_dim end_dim", "flatten"),
    Layers("PixelShuffle", "upscale_factor", "pixels"),
    Layers("PixelUnshuffle", "downscale_factor", "pixels"),
    Layers("ChannelShuffle", "groups", "shuffled"),
    Layers("GLU", "dim", "gated"),
    Layers("Fold", "output_size kernel_size dilation padding stride", "windows"),
    Layers("Unfold", "kernel_size dilation padding stride", "windows"),
    Layers("Softmax LogSoftmax Softmin", "dim", "softmax"),
    # no rule: they freeze the channels that they touch
    Layers("Softmax2d"),
    Layers("Bilinear", "in1_features in2_features out_features bias?"),
    Layers("LocalResponseNorm CrossMapLRN2d", "size alpha beta k"),
    Layers("LPPool3d", "norm_type kernel_size stride ceil_mode"),
    Layers("MaxUnpool1d MaxUnpool2d MaxUnpool3d", "kernel_size stride padding"),
    Layers("ZeroPad3d ReflectionPad3d ReplicationPad3d CircularPad3d", "padding"),
    Layers("ConstantPad3d", "padding value"),
    Layers("Unflatten", "dim unflattened_size"),
    Layers("Embedding", "num_embeddings embedding_dim padding_idx max_norm norm_type scale_grad_by_freq sparse", "embedding"),
    Layers("CosineSimilarity", "dim eps"),
    Layers(
        "MultiheadAttention",
        "embed_dim num_heads dropout bias?in_proj_bias add_bias_kv?bias_k add_zero_attn kdim vdim batch_first",
    ),
    Layers("DropBlock2d DropBlock3d", "p block_size eps inplace", owner=torchvision.ops),
    Layers("FrozenBatchNorm2d", "num_features<weight eps", owner=torchvision.ops),
)


# ---- read by rule ----------------------------------------------------------------------------------------------------------


def functions(*rules: str) -> frozenset[Callable[..., Any]]:
    """The functions of some rules."""
    owned = [(row, owner, names) for row in OPERATIONS for owner, names in _named(row) if row.rule in rules]
    # hasattr: the table also names what only some supported versions of torch have.
    return frozenset(getattr(owner, name) for _, owner, names in owned for name in names.split() if hasattr(owner, name))


def methods(*rules: str) -> frozenset[str]:
    """The tensor methods of some rules, by name."""
    return frozenset(name for row in OPERATIONS if row.rule in rules for name in row.methods.split())


def layers(*rules: str) -> frozenset[type[nn.Module]]:
    """The layer classes of some rules."""
    return frozenset(kind for row in LAYERS if row.rule in rules for kind in classes(row).values())


def classes(row: Layers) -> dict[str, type[nn.Module]]:
    """The classes of a row, by name."""
    return {name: getattr(row.owner, name) for name in row.names.split() if hasattr(row.owner, name)}


def _named(row: Operations) -> tuple[tuple[Any, str], ...]:
    return (torch, row.torch), (F, row.functional), (operator, row.operator), (torch.linalg, row.linalg), (torch.fft, row.fft)


# By exact class, never isinstance: a subclass may compute something else.
SAME, POOLS = layers("same"), layers("spatial")
ACTIVATIONS = frozenset(kind for row in LAYERS if row.activation for kind in classes(row).values())
"""Layers that an affine function can stand for."""
AFFINE_MAPS = frozenset(kind for row in LAYERS if row.merges for kind in classes(row).values())
"""Layers that can be merged with a neighbor."""
CONVOLUTIONS, TRANSPOSED = layers("convolution"), layers("transposed")
PER_CHANNEL_NORMS, LAST_AXES_NORMS = layers("channel norm"), layers("last axes norm")
RECURRENT = layers("recurrent")
SOFTMAXES, PIXEL_SHUFFLES = layers("softmax"), layers("pixels")
ELEMENTWISE, ELEMENTWISE_METHODS = functions("elementwise"), methods("elementwise")
CASTS = methods("cast")
POOLING = functions("spatial")
REDUCTIONS, REDUCTION_METHODS = functions("reduction"), methods("reduction")
SELECTIONS, SELECTION_METHODS = functions("selection"), methods("selection")
GATHERED, GATHER_METHODS = functions("gathered"), methods("gathered")
ALONG, ALONG_FUNCTIONS = methods("along"), functions("along")
FOURIER, COMPLEX = functions("fourier"), functions("complex")
MOVEMENT, MOVEMENT_METHODS = functions("movement"), methods("movement")
SIZED, SIZED_METHODS = functions("sized"), methods("sized")
PIXELS, JOINS = functions("pixels"), functions("join")
PRODUCTS, PRODUCT_METHODS = functions("product"), methods("product")
SIZE_METHODS = methods("size")
ATTRIBUTES = frozenset({"shape", "ndim", "T", "mT"})
"""What a graph may read of a tensor without freezing it."""
RESULTS = {"values": 0, "indices": 1, "min": 0, "max": 1}
"""Names of what a selection gives, and their places."""
FUNCTIONAL_CONVOLUTIONS = functions("convolution")
FUNCTIONAL_LAYERS = functions("convolution", "linear", "functional norm", "functional prelu")
