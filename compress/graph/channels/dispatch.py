"""The one place where a node meets its rule."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from compress.graph import operations
from compress.graph.channel_affine import ChannelAffine
from compress.graph.channels import einsum, functional_layers, layer_rules, matrix_products, op_rules, recurrent, reductions
from compress.graph.channels.atom_state import Count, Sized, State, argument, positions_only, tensors_in, unknown
from compress.graph.channels.atoms import varying
from compress.graph.partial_norm import PartialNorm

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]


def propagate(s: State, module: GraphModule, node: Node, args: Args, kwargs: Kwargs) -> Any:
    """The value of a node, given those of its arguments."""
    if node.op == "call_module":
        return _module(s, module, node, args, kwargs)
    found = tensors_in((args, kwargs))
    if not found:
        return _plain(s, node, args, kwargs)
    if _reads_sizes(node):
        return _sizes(s, node, args, kwargs)
    counts = [c for source in node.all_input_nodes for c in s.counts.get(source, ())]
    if counts and _elementwise(node):
        # A number for every entry keeps its value where channels go, as it does where they are masked.
        s.sized[node.name] = Sized(found[0], found[0], args, kwargs)
    elif counts and not follows_sizes(node):
        # Sizes that surgery cannot rewrite must not change, and so the channels that they count stay.
        s.single += [(t, dim, f"{op_rules.where(node)} computes with the number of channels") for t, dim in counts]
    if node.op == "call_method":
        return _method(s, node, args, kwargs)
    return _function(s, node, args, kwargs)


def reads_entries(node: Node) -> bool:
    """Whether the single entries of a parameter matter to this user of it; layers and unknown operations take it whole."""
    if _reads_sizes(node):
        return False
    return node.op in ("call_method", "call_module", "output") or node.target in _ENTRIES


# getitem counts, because the ends of a slice may be numbers of channels.
def follows_sizes(node: Node) -> bool:
    """Whether surgery rewrites the sizes among the arguments of this node, or they do not matter."""
    if node.target in operations.FUNCTIONAL_CONVOLUTIONS:  # the groups of a depthwise one
        return isinstance(argument(node.args, node.kwargs, 6, "groups"), Node)
    if node.target is F.affine_grid:  # it looks at the samples and the places of the size that it is given
        return True
    if node.op == "call_method":
        return node.target in operations.SIZED_METHODS
    return node.target in operations.SIZED or node.target is operator.getitem


def _elementwise(node: Node) -> bool:
    return node.target in (operations.ELEMENTWISE_METHODS if node.op == "call_method" else operations.ELEMENTWISE)


# ---- plain numbers ---------------------------------------------------------------------------------------------------------


def _plain(s: State, node: Node, args: Args, kwargs: Kwargs) -> Any:
    """Arithmetic on sizes: really done. A tensor made from nothing is not known."""
    counts = [c for source in node.all_input_nodes for c in s.counts.get(source, ())]
    shape = s.shapes.get(node.all_input_nodes[0]) if node.all_input_nodes else None
    if node.target is operator.getitem and shape is not None and isinstance(args[1], int | slice):
        # Of x.shape[i] only that axis matters; without this, x.shape[0] would freeze the channels.
        taken = shape[args[1]]
        if isinstance(args[1], slice):
            s.shapes[node] = cast(list[list[Count]], taken)
        counts = [c for axis in s.shapes[node] for c in axis] if isinstance(args[1], slice) else cast(list[Count], taken)
    elif node.target is len:
        counts = []
    if callable(node.target):
        value = node.target(*args, **kwargs)
    else:
        value = getattr(args[0], str(node.target))(*args[1:], **kwargs)
    if not tensors_in(value):
        s.counts[node] = counts
        return value
    # Such as torch.arange(x.shape[1]): it would be of another size after surgery.
    for t, dim in counts:
        s.single.append((t, dim, f"{op_rules.where(node)} computes with the number of channels"))
    return unknown(s, node, [], "makes a tensor")


def _reads_sizes(node: Node) -> bool:
    if node.op == "call_method":
        return node.target in operations.SIZE_METHODS
    return node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")


def _sizes(s: State, node: Node, args: Args, kwargs: Kwargs) -> Any:
    x, name = args[0], str(node.target if node.op == "call_method" else args[1])
    if name in ("dtype", "device"):
        # Atoms are integers; the activations that they stand for are float32.
        return torch.float32 if name == "dtype" else x.device
    value = getattr(x, name)(*args[1:], **kwargs) if node.op == "call_method" else getattr(x, name)
    one = args[1] if len(args) > 1 else kwargs.get("dim")
    source = node.all_input_nodes[0]
    # A parameter that nobody looks into has one atom for all: its axes are those that the layers record.
    name_of = s.names.get(str(source.target), str(source.target)) if source.op == "get_attr" else ""
    counted: Tensor | str = name_of if name_of and name_of not in s.parameters else x
    if name == "__len__" or (name == "size" and isinstance(one, int)):
        s.counts[node] = [(counted, one % x.ndim if isinstance(one, int) else 0)]
    elif name in ("shape", "size", "numel"):
        s.shapes[node] = [[(counted, d)] for d in range(x.ndim)]
        s.counts[node] = [c for axis in s.shapes[node] for c in axis]
    return value


# ---- layers ----------------------------------------------------------------------------------------------------------------


def _module(s: State, module: GraphModule, node: Node, args: Args, kwargs: Kwargs) -> Any:
    path = str(node.target)
    m: Any = s.modules[path]
    kind, found = type(m), tensors_in((args, kwargs))
    # Before the class is looked at: an opaque module may well be a subclass of a known layer.
    if path in (opaque := module.meta.get("opaque", {})):
        return unknown(s, node, found, opaque[path])
    if m._forward_pre_hooks or m._forward_hooks:
        return unknown(s, node, found, "has hooks, which may change what it computes")
    # Every layer with a rule has one input, but for the state of a recurrent one; any other ends in unknown with all of them.
    x = found[0]
    if kind in operations.SAME:
        return x
    if kind in operations.POOLS:
        return op_rules.spatial(s, node, x)
    # One-dimensional ones only: num_batches_tracked has no channels.
    own = [f"{path}.{n}" for n, t in (*m._parameters.items(), *m._buffers.items()) if t is not None and t.ndim == 1]
    weight, bias = f"{path}.weight", f"{path}.bias" if f"{path}.bias" in own else None
    if kind in operations.CONVOLUTIONS or kind in operations.TRANSPOSED:
        # From the module and not from the weight: a transposed convolution stores (in, out / groups).
        sizes = (m.out_channels, m.groups, m.weight.ndim)
        return layer_rules.convolution(s, node, x, weight, bias, sizes, kind in operations.TRANSPOSED)
    if kind is nn.Linear:
        return layer_rules.linear(s, node, x, weight, bias, m.out_features)
    if kind in operations.PER_CHANNEL_NORMS or kind is nn.GroupNorm:
        return layer_rules.per_channel_norm(s, node, x, own, m.num_groups if kind is nn.GroupNorm else 0)
    if kind in operations.LAST_AXES_NORMS:
        return layer_rules.layer_norm(s, node, x, own, len(m.normalized_shape))
    if kind in operations.RECURRENT:
        return recurrent.recurrent(s, node, m, path, found)
    if kind is nn.Embedding and m.max_norm is None:  # with a limit, looking up changes the table
        return layer_rules.embedding(s, node, x, weight, m.embedding_dim)
    if kind is nn.PReLU:
        return layer_rules.prelu(s, node, x, weight, m.num_parameters)
    if kind is PartialNorm:
        return layer_rules.joint_norm(s, node, x, own, m.axis)
    if kind is ChannelAffine:
        return layer_rules.channel_affine(s, node, x, own, m.axis)
    return _moving_module(s, node, m, x, found)


def _moving_module(s: State, node: Node, m: Any, x: Tensor, found: list[Tensor]) -> Any:
    kind = type(m)
    if kind is nn.Flatten:
        return m(x)
    if kind in operations.PIXEL_SHUFFLES:
        return op_rules.pixels(s, x, m)
    if kind is nn.ChannelShuffle:
        return op_rules.shuffled(s, x, m.groups)
    if kind is nn.Unfold:
        return op_rules.windows(s, node, x)
    if kind is nn.Fold:
        return op_rules.folded(s, node, x)
    if kind is nn.GLU:
        return op_rules.gated(s, x, m.dim)
    # Without dim torch chooses one by the number of axes, which is not followed here.
    if kind in operations.SOFTMAXES and m.dim is not None:
        return positions_only(s, node, x, [m.dim], "normalizes over channels")
    return unknown(s, node, found, f"({kind.__name__}) is not known to the solver")


# ---- functions and methods -------------------------------------------------------------------------------------------------


def _method(s: State, node: Node, args: Args, kwargs: Kwargs) -> Any:
    name, x = str(node.target), args[0]
    if name in ("expand", "expand_as") and (out := _expanded(s, node, x, args, kwargs)) is not None:
        return out
    if name in operations.SIZED_METHODS:
        # Atoms are expanded views, which only reshape takes; on the activations themselves view and reshape agree.
        move = getattr(x, "reshape" if name == "view" else name)
        return op_rules.sized(s, node, args, kwargs, lambda: move(*args[1:], **kwargs))
    if name in operations.MOVEMENT_METHODS:
        return getattr(x, name)(*args[1:], **kwargs)
    if name in operations.CASTS:
        return x
    if name in operations.ELEMENTWISE_METHODS:
        return op_rules.elementwise(s, node, tensors_in((args, kwargs)))
    if name in operations.REDUCTION_METHODS:
        return reductions.reduction(s, node, name, args, kwargs)
    if name in operations.SELECTION_METHODS:
        return reductions.selection(s, node, name, args, kwargs)
    if name in operations.GATHER_METHODS:
        return reductions.gathered(s, node, name, args, kwargs)
    if name in operations.ALONG:
        return _along(s, node, name, args, kwargs)
    if name in operations.PRODUCT_METHODS:
        return einsum.matmul(s, node, args[0], args[1])
    if name in ("reshape_as", "view_as"):
        return op_rules.shaped_as(s, x, args[1])
    if name == "unbind":
        return op_rules.unbound(s, node, x, argument(args, kwargs, 1, "dim", 0))
    if name == "unfold":
        return op_rules.slid(s, node, x, argument(args, kwargs, 1, "dimension"))
    if name == "repeat_interleave":
        return op_rules.repeated(s, node, args, kwargs)
    return unknown(s, node, tensors_in((args, kwargs)))


def _expanded(s: State, node: Node, x: Tensor, args: Args, kwargs: Kwargs) -> Tensor | None:
    if node.target == "expand_as":
        return op_rules.expanded(s, node, x, argument(args, kwargs, 1, "other"))
    given = node.args[1] if len(node.args) == 2 else node.args[1:]
    out = op_rules.expanded(s, node, x, given) if isinstance(given, Node | tuple | list) else None
    if out is not None:
        s.sized[node.name] = Sized(x, out, args, kwargs)
    return out


def _function(s: State, node: Node, args: Args, kwargs: Kwargs) -> Any:
    f: Any = node.target
    x: Any = args[0] if args else kwargs.get("input")
    if f is getattr and args[1] in operations.ATTRIBUTES:
        return getattr(x, args[1])
    if f is getattr and args[1] in operations.RESULTS and isinstance(x, tuple):
        return x[operations.RESULTS[args[1]]]
    if f is operator.getitem:
        return x[args[1]] if not isinstance(x, Tensor) else op_rules.picked(s, node, x, args[1])
    if f in operations.SIZED:
        return op_rules.sized(s, node, args, kwargs, lambda: f(*args, **kwargs))
    if f in operations.MOVEMENT:
        return f(*args, **kwargs)
    if f in operations.ELEMENTWISE:
        return op_rules.elementwise(s, node, tensors_in((args, kwargs)))
    if f in operations.POOLING:
        return op_rules.spatial(s, node, x)
    if f in operations.JOINS:
        dim = argument(args, kwargs, 1, "dim", kwargs.get("axis", 0))
        return op_rules.joined(s, node, args[0] if args else kwargs["tensors"], dim, f is torch.stack)
    if f in operations.REDUCTIONS:
        return reductions.reduction(s, node, f.__name__.removeprefix("linalg_"), args, kwargs)
    if f in operations.SELECTIONS:
        return reductions.selection(s, node, f.__name__, args, kwargs)
    if f in operations.GATHERED:
        return reductions.gathered(s, node, f.__name__, args, kwargs)
    if f in operations.ALONG_FUNCTIONS:
        return _along(s, node, f.__name__, args, kwargs)
    if f in operations.FOURIER:
        return reductions.fourier(s, node, f.__name__, args, kwargs)
    if f in operations.COMPLEX or (f is getattr and args[1] in ("real", "imag")):
        return reductions.of_complex(s, node, x)
    if f in operations.PRODUCTS:
        return einsum.matmul(s, node, args[0], args[1])
    if f in operations.PIXELS:
        # Atoms go first and the rest as called; `input` by name would be given twice.
        return op_rules.pixels(s, x, lambda t: f(t, *args[1:], **{k: v for k, v in kwargs.items() if k != "input"}))
    special = _SPECIAL.get(f)
    return special(s, node, args, kwargs) if special else unknown(s, node, tensors_in((args, kwargs)))


def _along(s: State, node: Node, name: str, args: Args, kwargs: Kwargs) -> Any:
    """Softmax, normalization, roll, running sums: one axis is mixed."""
    # The axis is the second argument of softmax and cumsum, the third of normalize (behind p) and roll (behind shifts).
    x, position = args[0], 2 if name in ("normalize", "roll") else 1
    dims = argument(args, kwargs, position, "dim", kwargs.get("dims", 1 if name == "normalize" else None))
    # roll without dims flattens first; a tensor among the arguments may be anything.
    if dims is None or len(tensors_in((args, kwargs))) > 1:
        return unknown(s, node, tensors_in((args, kwargs)))
    order = argument(args, kwargs, 1, "p", 2.0) if name == "normalize" else 0
    if isinstance(dims, int) and order > 0 and varying(x) == [dims % x.ndim]:
        return reductions.normalized(s, node, x, dims % x.ndim)
    return positions_only(s, node, x, [dims] if isinstance(dims, int) else dims, "mixes channels")


# ---- what is looked up by function ------------------------------------------------------------------------------------------


_SPECIAL: dict[Any, Callable[[State, Node, Args, Kwargs], Any]] = {
    F.linear: functional_layers.layer,
    **dict.fromkeys(operations.FUNCTIONAL_CONVOLUTIONS, functional_layers.layer),
    F.layer_norm: functional_layers.norm,
    F.batch_norm: functional_layers.norm,
    F.prelu: functional_layers.prelu,
    F.scaled_dot_product_attention: matrix_products.attention,
    F.pad: lambda s, node, args, kwargs: op_rules.padded(
        s, node, args[0], argument(args, kwargs, 1, "pad"), argument(args, kwargs, 2, "mode", "constant")
    ),
    torch.einsum: lambda s, node, args, kwargs: einsum.einsum(s, node, args[0], tensors_in(args[1:])),
    F.glu: lambda s, node, args, kwargs: op_rules.gated(s, args[0], argument(args, kwargs, 1, "dim", -1)),
    torch.channel_shuffle: lambda s, node, args, kwargs: op_rules.shuffled(s, args[0], argument(args, kwargs, 1, "groups")),
    F.cosine_similarity: reductions.cosine,
    F.grid_sample: lambda s, node, args, kwargs: op_rules.sampled(
        s, node, argument(args, kwargs, 0, "input"), argument(args, kwargs, 1, "grid")
    ),
    F.unfold: lambda s, node, args, kwargs: op_rules.windows(s, node, argument(args, kwargs, 0, "input")),
    F.fold: lambda s, node, args, kwargs: op_rules.folded(s, node, argument(args, kwargs, 0, "input")),
    torch.slice_scatter: lambda s, node, args, kwargs: op_rules.scattered(
        s, node, args[0], args[1], argument(args, kwargs, 2, "dim", 0)
    ),
    torch.repeat_interleave: op_rules.repeated,
    torch.unbind: lambda s, node, args, kwargs: op_rules.unbound(s, node, args[0], argument(args, kwargs, 1, "dim", 0)),
}
_LAYERS = operations.FUNCTIONAL_LAYERS
_ENTRIES = frozenset(
    {getattr, operator.getitem, *(f for f in _SPECIAL if f not in _LAYERS)}
    | operations.SIZED
    | operations.MOVEMENT
    | operations.ELEMENTWISE
    | operations.POOLING
    | operations.JOINS
    | operations.REDUCTIONS
    | operations.SELECTIONS
    | operations.GATHERED
    | operations.FOURIER
    | operations.COMPLEX
    | operations.ALONG_FUNCTIONS
    | operations.PRODUCTS
    | operations.PIXELS
)
