"""Which rule an operation follows: the tables, and the one function that looks a node up in them."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchvision.ops import Permute, StochasticDepth

from compress.graph import rules
from compress.graph.atoms import varies
from compress.graph.rules import State, where

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]

# Every activation keeps to its channel: one operand, no axis.
_ACTIVATIONS = "ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh Softplus Sigmoid Tanh LogSigmoid"
_ACTIVATIONS += " Softsign Hardshrink Softshrink Tanhshrink Threshold Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout"
_POOLS = "MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d LPPool1d LPPool2d AdaptiveAvgPool1d AdaptiveAvgPool2d"
_POOLS += " AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d Upsample UpsamplingNearest2d"
_POOLS += " UpsamplingBilinear2d ZeroPad1d ZeroPad2d ConstantPad1d ConstantPad2d ReflectionPad1d ReflectionPad2d"
_POOLS += " ReplicationPad1d ReplicationPad2d CircularPad1d CircularPad2d"


def _classes(names: str) -> frozenset[type[nn.Module]]:
    return frozenset(getattr(nn, name) for name in names.split())


SAME = _classes(_ACTIVATIONS) | {StochasticDepth}
POOLS = _classes(_POOLS)
CONVOLUTIONS = _classes("Conv1d Conv2d Conv3d")
TRANSPOSED = _classes("ConvTranspose1d ConvTranspose2d ConvTranspose3d")
PER_CHANNEL_NORMS = _classes("BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d")
SOFTMAXES = _classes("Softmax LogSoftmax Softmin")
MOVING_MODULES = _classes("Flatten PixelShuffle PixelUnshuffle") | {Permute}

POOLING = frozenset(
    {F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.interpolate, torch.max_pool1d}
    | {F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_max_pool1d, F.adaptive_max_pool2d, torch.max_pool2d}
)
ELEMENTWISE = frozenset(
    {operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul, operator.truediv, operator.itruediv}
    | {operator.neg, operator.pow, torch.add, torch.sub, torch.mul, torch.div, torch.neg, torch.pow, torch.maximum, torch.minimum}
    | {torch.exp, torch.log, torch.sqrt, torch.rsqrt, torch.abs, torch.square, torch.clamp, torch.sin, torch.cos, torch.erf}
    | {torch.where, F.relu, F.leaky_relu, F.gelu, F.silu, F.dropout}
)
ELEMENTWISE_METHODS = frozenset(
    [
        "add",
        "add_",
        "sub",
        "sub_",
        "mul",
        "mul_",
        "div",
        "div_",
        "neg",
        "pow",
        "exp",
        "log",
        "sqrt",
        "rsqrt",
        "abs",
        "square",
        "clamp",
        "clamp_",
        "sin",
        "cos",
        "erf",
        "float",
        "to",
        "type",
        "type_as",
        "contiguous",
        "clone",
        "detach",
        "masked_fill",
        "masked_fill_",
    ]
)
REDUCTIONS = frozenset({torch.mean, torch.sum, torch.amax, torch.amin, torch.std, torch.var})
REDUCTION_METHODS = frozenset(["mean", "sum", "amax", "amin", "std", "var"])
MOVEMENT = frozenset(
    {torch.flatten, torch.permute, torch.transpose, torch.swapaxes, torch.movedim, torch.squeeze, torch.unsqueeze, torch.flip}
    | {F.pixel_shuffle, F.pixel_unshuffle, torch.t}
)
MOVEMENT_METHODS = frozenset(
    ["flatten", "permute", "transpose", "swapaxes", "movedim", "squeeze", "unsqueeze", "flip", "t", "expand_as"]
)
# Their constant arguments count channels and follow them (surgery rewrites them).
SIZED = frozenset({torch.reshape, torch.chunk, torch.split, torch.unflatten})
SIZED_METHODS = frozenset(["view", "reshape", "expand", "chunk", "split", "unflatten"])
JOINS = frozenset({torch.cat, torch.concat, torch.stack})
PRODUCTS = frozenset({torch.matmul, torch.bmm, operator.matmul})
SIZE_METHODS = frozenset(["size", "dim", "numel", "ndimension", "__len__"])
ATTRIBUTES = {"shape", "ndim", "T", "mT"}


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in nested arguments, in order."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for v in value for t in tensors_in(v)] if isinstance(value, list | tuple) else []


def reads_channels(node: Node) -> bool:
    """Whether a parameter's channels matter to this user of it; layers and unknown operations take the whole tensor."""
    layer = (F.linear, F.conv1d, F.conv2d, F.layer_norm, F.batch_norm)
    known = (SIZED, MOVEMENT, ELEMENTWISE, JOINS, REDUCTIONS, PRODUCTS, {getattr, operator.getitem}, set(_SPECIAL) - set(layer))
    return node.op == "call_method" or any(node.target in table for table in known)


def propagate(s: State, module: GraphModule, node: Node, args: Args, kwargs: Kwargs) -> Any:
    """The value of a node, given those of its arguments."""
    if node.op == "call_module":
        return _module(s, node, module.get_submodule(str(node.target)), args)
    found = tensors_in((args, kwargs))
    if not found:
        return _plain(s, node, args, kwargs)
    if node.op == "call_method":
        return _method(s, node, args, kwargs)
    return _function(s, node, args, kwargs)


def _plain(s: State, node: Node, args: Args, kwargs: Kwargs) -> Any:
    """Arithmetic on sizes: really done. A tensor made from nothing is not known."""
    if node.op == "call_function" and callable(node.target):
        value = node.target(*args, **kwargs)
    else:
        value = getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return rules.unknown(s, node, [], "makes a tensor") if tensors_in(value) else value


def _module(s: State, node: Node, m: Any, args: Args) -> Any:
    kind, path = type(m), str(node.target)
    found = tensors_in(args)
    x = found[0]
    weight, bias = f"{path}.weight", f"{path}.bias" if getattr(m, "bias", None) is not None else None
    if kind in SAME:
        return x
    if kind in CONVOLUTIONS or kind in TRANSPOSED:
        return rules.convolution(s, node, x, weight, bias, m.out_channels, m.groups, kind in TRANSPOSED)
    if kind is nn.Linear:
        return rules.linear(s, node, x, weight, bias, m.out_features)
    if kind in PER_CHANNEL_NORMS or kind is nn.GroupNorm:
        names = [f"{path}.{n}" for n, t in (*m.named_parameters(recurse=False), *m.named_buffers(recurse=False)) if t.ndim == 1]
        return rules.per_channel_norm(s, x, names, m.num_groups if kind is nn.GroupNorm else 0, node)
    if kind is nn.LayerNorm or kind is nn.RMSNorm:
        return rules.layer_norm(
            s, x, [f"{path}.{n}" for n, _ in m.named_parameters(recurse=False)], len(m.normalized_shape), node
        )
    if kind in POOLS:
        return rules.spatial(s, node, x)
    if kind is nn.PReLU:
        slope = s.atoms.per_channel(x, 1) if m.num_parameters > 1 else s.atoms.new(1)
        if m.num_parameters == 1:
            s.atoms.freeze(slope, f"{where(node)} has one slope for all channels")
        s.axis(weight, 0, "through", slope)
        return x
    if kind in MOVING_MODULES:
        return m(x)
    if kind is nn.ChannelShuffle:
        return rules.shuffled(s, x, m.groups)
    if kind is nn.GLU:
        return rules.gated(s, x, m.dim)
    if kind in SOFTMAXES and m.dim is not None:
        return rules.softmax(s, node, x, m.dim)
    opaque = node.graph.owning_module.meta.get("opaque", {}).get(path) if node.graph.owning_module else None
    return rules.unknown(s, node, found, opaque or f"({kind.__name__}) is not known to the solver")


def _method(s: State, node: Node, args: Args, kwargs: Kwargs) -> Any:
    name, x = str(node.target), args[0]
    if name in SIZE_METHODS:
        return getattr(x, name)(*args[1:], **kwargs)
    if name == "view":  # atoms are expanded views, which only reshape takes; on the activations themselves both agree
        return _sized(s, node, x, lambda: x.reshape(*args[1:], **kwargs))
    if name in SIZED_METHODS:
        return _sized(s, node, x, lambda: getattr(x, name)(*args[1:], **kwargs))
    if name in MOVEMENT_METHODS:
        return getattr(x, name)(*args[1:], **kwargs)
    if name in ELEMENTWISE_METHODS:
        return rules.elementwise(s, node, tensors_in(args))
    if name in REDUCTION_METHODS:
        return rules.reduced(s, node, x, _dims(x, args, kwargs))
    if name == "softmax":
        return rules.softmax(s, node, x, args[1] if len(args) > 1 else kwargs["dim"])
    if name in ("matmul", "bmm"):
        return rules.matmul(s, node, args[0], args[1])
    if name == "unbind":
        return _unbound(s, node, x, args, kwargs)
    return rules.unknown(s, node, tensors_in((args, kwargs)))


def _function(s: State, node: Node, args: Args, kwargs: Kwargs) -> Any:
    f, x = node.target, args[0] if args else kwargs.get("input")
    if f is getattr:
        if args[1] in ATTRIBUTES:
            return getattr(x, args[1])
        return torch.float32 if args[1] == "dtype" else x.device if args[1] == "device" else rules.unknown(s, node, [x])
    if f is operator.getitem:
        return x[args[1]] if not isinstance(x, Tensor) else _picked(s, node, x, args[1])
    if f in SIZED and callable(f):
        return _sized(s, node, x, lambda: f(*args, **kwargs))
    if f in MOVEMENT and callable(f):
        return f(*args, **kwargs)
    if f in ELEMENTWISE:
        return rules.elementwise(s, node, tensors_in(args))
    if f in POOLING:
        return rules.spatial(s, node, x)
    if f in JOINS:
        return _joined(s, node, args, kwargs)
    if f in REDUCTIONS:
        return rules.reduced(s, node, x, _dims(x, args, kwargs))
    if f in PRODUCTS:
        return rules.matmul(s, node, args[0], args[1])
    special = _SPECIAL.get(f)
    return special(s, node, args, kwargs) if special else rules.unknown(s, node, tensors_in((args, kwargs)))


def _dims(x: Tensor, args: Args, kwargs: Kwargs) -> list[int]:
    dims = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
    dims = range(x.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
    return [d % x.ndim for d in dims]


def _sized(s: State, node: Node, x: Tensor, call: Callable[[], Any]) -> Any:
    out = call()
    s.sized[node.name] = (x, out if isinstance(out, Tensor) else x)
    s.rectangles.extend(tensors_in(out))
    return out


def _unbound(s: State, node: Node, x: Tensor, args: Args, kwargs: Kwargs) -> Any:
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    s.picked.append((x, dim % x.ndim, where(node)))
    return x.unbind(dim)


def _picked(s: State, node: Node, x: Tensor, index: Any) -> Any:
    """x[...]: whole axes and plain slices follow their channels; a single entry or a stride must not lose its place."""
    index = index if isinstance(index, tuple) else (index,)
    if tensors_in(list(index)) or not all(isinstance(i, int | slice) or i is None or i is Ellipsis for i in index):
        return rules.unknown(s, node, [x, *tensors_in(list(index))], "is indexed by a tensor")
    taken = sum(isinstance(i, int | slice) for i in index)
    dim = 0
    for i in index:
        if i is Ellipsis:
            dim += x.ndim - taken
        elif isinstance(i, int | slice):
            plain = isinstance(i, slice) and i.step in (None, 1)
            if i != slice(None) and not plain:
                s.picked.append((x, dim, where(node)))
            dim += 1
    out = x[index]
    s.sized[node.name] = (x, out)
    return out


def _joined(s: State, node: Node, args: Args, kwargs: Kwargs) -> Any:
    parts: list[Tensor] = list(args[0] if args else kwargs["tensors"])
    dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
    new_axis = node.target is torch.stack
    axis = dim % (parts[0].ndim + new_axis)
    if new_axis:
        parts = [p.unsqueeze(axis) for p in parts]
    if any(varies(p, d) for p in parts for d in range(p.ndim) if d != axis):
        # Joined along another axis than their channels: they must keep the same channels.
        for p in parts[1:]:
            s.atoms.unite(parts[0].narrow(axis, 0, 1), p)
        return torch.cat(parts, axis)
    slim = [p if p.shape[axis] else p for p in parts]
    for d in range(parts[0].ndim):
        if d != axis:
            slim = [p.narrow(d, 0, 1) for p in slim]
    return torch.cat(slim, axis).expand(tuple(node.meta["shape"]))


def _tensor_name(node: Node, position: int, name: str) -> str | None:
    """The state_dict name of a parameter that is an argument of a functional layer; '' where it is computed."""
    argument = node.args[position] if len(node.args) > position else node.kwargs.get(name)
    if argument is None:
        return None
    return str(argument.target) if isinstance(argument, Node) and argument.op == "get_attr" else ""


def _functional_layer(s: State, node: Node, args: Args, kwargs: Kwargs) -> Any:
    weight, bias = _tensor_name(node, 1, "weight"), _tensor_name(node, 2, "bias")
    if not weight or bias == "" or (node.target is not F.linear and (args[6] if len(args) > 6 else kwargs.get("groups", 1)) != 1):
        return rules.unknown(s, node, tensors_in((args, kwargs)), "computes its weights or has groups")
    for name in (weight, bias):
        s.parameters.pop(name or "", None)
    out = (args[1] if len(args) > 1 else kwargs["weight"]).shape[0]
    if node.target is F.linear:
        return rules.linear(s, node, args[0], weight, bias, out)
    return rules.convolution(s, node, args[0], weight, bias, out, 1, False)


def _functional_norm(s: State, node: Node, args: Args, kwargs: Kwargs) -> Any:
    names = (
        {"weight": 2, "bias": 3} if node.target is F.layer_norm else {"running_mean": 1, "running_var": 2, "weight": 3, "bias": 4}
    )
    tensors = [t for t in (_tensor_name(node, i, n) for n, i in names.items()) if t is not None]
    if "" in tensors:
        return rules.unknown(s, node, tensors_in((args, kwargs)), "computes its weights")
    for name in tensors:
        s.parameters.pop(name, None)
    if node.target is F.layer_norm:
        return rules.layer_norm(s, args[0], tensors, len(args[1] if len(args) > 1 else kwargs["normalized_shape"]), node)
    return rules.per_channel_norm(s, args[0], tensors, 0, node)


def _attention(s: State, node: Node, args: Args, kwargs: Kwargs) -> Any:
    q, k, v = args[:3] if len(args) > 2 else (kwargs["query"], kwargs["key"], kwargs["value"])
    mask = args[3] if len(args) > 3 else kwargs.get("attn_mask")
    if isinstance(mask, Tensor):
        if mask.ndim > 2 and mask.shape[-3] > 1:
            s.atoms.unite(q.narrow(-2, 0, 1).narrow(-1, 0, 1), mask)
        else:
            s.atoms.freeze(mask, f"{where(node)} shares the mask among heads")
    return rules.attention(s, node, q, k, v)


def _softmax(s: State, node: Node, args: Args, kwargs: Kwargs) -> Any:
    return rules.softmax(s, node, args[0], args[1] if len(args) > 1 else kwargs["dim"])


_SPECIAL: dict[Any, Callable[[State, Node, Args, Kwargs], Any]] = {
    F.linear: _functional_layer,
    F.conv1d: _functional_layer,
    F.conv2d: _functional_layer,
    F.layer_norm: _functional_norm,
    F.batch_norm: _functional_norm,
    F.scaled_dot_product_attention: _attention,
    F.softmax: _softmax,
    torch.softmax: _softmax,
    F.pad: lambda s, node, args, kwargs: rules.padded(s, node, args[0], args[1] if len(args) > 1 else kwargs["pad"]),
    F.glu: lambda s, node, args, kwargs: rules.gated(s, args[0], args[1] if len(args) > 1 else kwargs.get("dim", -1)),
    F.channel_shuffle: lambda s, node, args, kwargs: rules.shuffled(s, args[0], args[1]),
    torch.unbind: lambda s, node, args, kwargs: _unbound(s, node, args[0], args, kwargs),
}
