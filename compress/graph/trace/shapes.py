"""The shape of every node's value, found without data.

The graph runs on tensors of the meta device, which have sizes and no entries. Layers whose shapes are plain arithmetic are not
even called: n entries become (n + 2 p - d (k - 1) - 1) // s + 1 behind a window of k taps, dilation d, stride s and padding p.
Where anything is unusual (an operation that needs values, a layer that refuses its input), the model runs on its real inputs.
"""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, Interpreter, Node
from torch.fx.node import map_arg
from torch.utils._pytree import tree_map

from compress.errors import BadInput
from compress.graph import operations
from compress.graph.names import submodules
from compress.graph.trace.endless import Endless

MAX_VALUES = 2**31
"""Of an input whose shape somebody typed."""
SAFE_VALUES = 2**28
"""Of anything that is made of an input, or more where the input itself has so many."""
_WIDER = 32  # a first layer of 64 channels makes 21 values of each of a picture's


def note_shapes(root: nn.Module, graph: Graph, inputs: tuple[Tensor, ...]) -> None:
    """Write the output shape of every node to `meta["shape"]` (nested for tuples, None for what is no tensor).

    `meta["boolean"]` is whether it is a tensor of truth values.

    Args:
        root: holds the modules and tensors that the graph names.
        graph: what is looked at.
        inputs: example inputs, batch first.

    Raises:
        BadInput: a value is larger than anything that is worked with.
        Exception: whatever the model raises on these inputs.
    """
    try:
        _without_data(root, graph, inputs)
    except BadInput:
        raise
    # Cheap and usual first: without data a network takes a fraction of the time of one real run.
    except Exception:  # an operation that needs data, or does not run at all: the real run tells
        with torch.no_grad():
            _ShapeNotes(root, graph).run(*inputs)


def is_empty(shape: Any) -> bool:
    """Whether a tensor of such a shape (see `shape_of`), or one of several, has no values."""
    parts = shape.values() if isinstance(shape, dict) else shape or ()
    return any(is_empty(part) if isinstance(part, (tuple, list, dict)) else part == 0 for part in cast("Iterable[Any]", parts))


def shape_of(value: Any) -> Any:
    """Sizes of a tensor, nested for tuples and dictionaries, None for the rest."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        return {k: shape_of(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return tuple(shape_of(v) for v in value)
    return None


def _boolean(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype is torch.bool


class _ShapeNotes(Interpreter):
    def __init__(self, root: nn.Module, graph: Graph):
        super().__init__(root, graph=graph)
        self.endless, self.most = Endless(), SAFE_VALUES

    def run_node(self, n: Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        self.endless.refuse(n, args, kwargs)
        if n.op in ("call_function", "call_method"):
            _refuse_giant(n, tree_map(bare, args), tree_map(bare, kwargs), self.most, of_any=True)
        value = super().run_node(n)
        self.endless.told(n, value)
        if n.op == "placeholder" and isinstance(value, Tensor):
            self.most = max(self.most, _WIDER * value.numel())
        n.meta["shape"], n.meta["boolean"] = shape_of(value), _boolean(value)
        return value


def _without_data(root: nn.Module, graph: Graph, inputs: tuple[Tensor, ...]) -> None:
    values: dict[Node, Any] = {}
    look_up: Callable[[Node], Any] = values.__getitem__
    # By every name: a module that is shared is called under each of them.
    modules = dict(submodules(root, again=True))
    given, most, endless = iter(inputs), SAFE_VALUES, Endless()
    with torch.no_grad():
        for node in graph.nodes:
            target: Any = node.target
            if node.op == "placeholder":
                value = bare(next(given))
            elif node.op == "get_attr":
                value = bare(functools.reduce(getattr, target.split("."), root))
            else:
                args, kwargs = map_arg(node.args, look_up), map_arg(node.kwargs, look_up)
                endless.refuse(node, args, kwargs)
                _refuse_giant(node, args, kwargs, most)
                _refuse_fractions(modules.get(target) if node.op == "call_module" else target, args)
                if node.op == "call_module":
                    value = _layer(modules[target], args, kwargs)
                elif node.op == "call_function":
                    value = _function(target, args, kwargs)
                else:
                    value = args[0] if node.op == "output" else getattr(args[0], target)(*args[1:], **kwargs)
            values[node] = value
            endless.told(node, value)
            most = max(most, _WIDER * value.numel()) if node.op == "placeholder" and isinstance(value, Tensor) else most
            node.meta["shape"], node.meta["boolean"] = shape_of(value), _boolean(value)
            _refuse_too_large(node, value, most)


def _refuse_fractions(part: Any, args: tuple[Any, ...]) -> None:
    """Without data some versions of torch look up places that are no whole numbers; the real run tells, in torch's words.

    Raises:
        TypeError: a table is asked for them.
    """
    table = isinstance(part, nn.Embedding) or part is F.embedding
    if table and args and isinstance(args[0], Tensor) and args[0].is_floating_point():
        raise TypeError("a table is looked up at whole numbers")


def _refuse_giant(node: Node, args: tuple[Any, ...], kwargs: dict[str, Any], most: int, of_any: bool = False) -> None:
    """Refuse a tensor of nothing but sizes, or one `of_any` function, before there is memory for it.

    Args:
        node: that calls a function or method.
        args: its arguments, tensors without entries.
        kwargs: those with names.
        most: values.
        of_any: whether others than those that make a tensor are asked, too.

    Raises:
        BadInput: it has more values.
    """
    target: Any = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if node.op == "call_function" and str(getattr(target, "__module__", "")).startswith("torchvision."):
        sides = [a for a in args if isinstance(a, list | tuple) and all(isinstance(n, int) for n in a)]
        if any(math.prod(map(abs, side)) > _WINDOWS for side in sides):
            raise BadInput(f"The model makes windows of {sides[0]} at '{node.name}'. Take the model from a source you trust.")
    if node.op not in ("call_function", "call_method") or not (of_any or name in _MAKERS):
        return
    where = {"device": "meta"} if name in _MAKERS else {}
    try:
        value = (
            getattr(args[0], target)(*args[1:], **kwargs, **where)
            if isinstance(target, str)
            else target(*args, **{**kwargs, **where})
        )
    except Exception:  # what it does with real entries is told when it does it
        return
    _refuse_too_large(node, value, most)


_WINDOWS = 2**24
_MAKERS = frozenset(
    {"ones", "zeros", "full", "empty", "rand", "randn", "randint", "eye", "arange", "linspace", "logspace"}
    | {"tril_indices", "triu_indices", "hann_window", "hamming_window", "new_ones", "new_zeros", "new_full", "new_empty"}
)
"""What makes a tensor of sizes alone, wherever the other tensors are."""


def _refuse_too_large(node: Node, value: Any, most: int) -> None:
    # Before anything is run on data: a file of a few kilobytes may ask for a picture of a million pixels a side.
    if isinstance(value, Tensor) and value.numel() > most:
        raise BadInput(
            f"The model makes {value.numel()} values at '{node.name}' for a single input; at most {most} are worked "
            "with. Give smaller inputs, or take the model from a source you trust."
        )


# these give the larger operand's shape, and float32 for float32
_ARITHMETIC = frozenset({operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, torch.add, torch.mul})


def _function(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A function's value. Those of whole operations of networks are known without a call, whose overhead is most of the time."""
    if function in _ARITHMETIC and len(args) == 2 and not kwargs:
        wide, other = sorted(args, key=lambda a: a.numel() if isinstance(a, Tensor) else 0, reverse=True)
        # Only float32 with float32 or plain numbers: other types would need the promotion rules of torch.
        if _floats(wide) and (type(other) in (int, float) or (_floats(other) and _fits(other.shape, wide.shape))):
            return wide
    elif function is torch.cat and len(args) == 2 and type(args[1]) is int and not kwargs and all(map(_floats, args[0])):
        shapes, dim = [list(t.shape) for t in args[0]], args[1]
        # Parts that do not fit are left to the real cat, which raises its own message.
        sizes = [*shapes[0][:dim], sum(s[dim] for s in shapes), *shapes[0][dim:][1:]]
        if all(s[:dim] == sizes[:dim] and s[dim:][1:] == sizes[dim:][1:] and len(s) == len(sizes) for s in shapes):
            return torch.empty(sizes, device="meta")
    elif function is F.layer_norm and _floats(args[0]):
        sizes = tuple(cast(tuple[int, ...], args[1]))
        if args[0].shape[-len(sizes) :] == sizes:
            return args[0]
    return function(*args, **kwargs)


def _floats(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.dtype is torch.float32


def _fits(narrow: tuple[int, ...], wide: tuple[int, ...]) -> bool:
    """Whether a shape is broadcast to the wide one and leaves it as it is."""
    return len(narrow) <= len(wide) and all(a in (1, b) for a, b in zip(reversed(narrow), reversed(wide), strict=False))


def bare(value: Any) -> Any:
    """The same tensor without entries; anything else as it is."""
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value


def run_bare(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A module's value on tensors without entries."""
    # functional_call has an overhead of its own, and without tensors there is nothing to replace.
    if not any(part._parameters or part._buffers for part in m.modules()):
        return m(*args, **kwargs)
    tensors = {name: bare(t) for name, t in (*m.named_parameters(), *m.named_buffers())}
    return torch.func.functional_call(m, tensors, args, kwargs)


def _layer(m: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    # Exact modules of torch and ours are known to keep nothing between calls; a hook may look at values.
    if not type(m).__module__.startswith(_KNOWN) or m._forward_hooks or m._forward_pre_hooks:
        raise NotImplementedError("what the user has written may keep tensors, and none of those may be without entries")
    # Many operations on the meta device; with need_weights=False the result has the sizes of the queries.
    if type(m) is nn.MultiheadAttention and kwargs == {"need_weights": False} and _attended(m, *args):
        return args[0], None
    x = args[0] if len(args) == 1 and not kwargs else None
    # Anything but float32, or sizes that do not fit, goes through the layer itself, which then raises its own message.
    if not _floats(x) or (sizes := _sizes(m, x)) is None:
        return run_bare(m, args, kwargs)
    return x if sizes == x.shape else torch.empty(sizes, device="meta")


_KNOWN = ("torch.nn.modules.", "torchvision.ops.stochastic_depth", "compress.")


def _attended(m: nn.MultiheadAttention, *given: Any) -> bool:
    """Whether queries, keys and values fit the layer and each other: what comes out has the sizes of the queries."""
    if len(given) != 3 or not all(_floats(t) and t.ndim == 3 for t in given):
        return False
    q, k, v = (tuple(t.shape) for t in given)
    batch = 0 if m.batch_first else 1
    return (q[2], k[2], v[2]) == (m.embed_dim, m.kdim, m.vdim) and k[:2] == v[:2] and q[batch] == k[batch]


def _sizes(m: Any, x: Tensor) -> tuple[int, ...] | torch.Size | None:
    """The output's sizes where arithmetic tells that the layer takes this input; None where it has to be called."""
    kind = type(m)
    if kind in operations.SAME:
        return x.shape
    if kind in _BATCH_NORMS:
        return x.shape if x.ndim == _BATCH_NORMS[kind] and x.shape[1] == m.num_features else None
    if kind is nn.Linear:
        return (*x.shape[:-1], m.out_features) if x.ndim and x.shape[-1] == m.in_features else None
    if kind is nn.LayerNorm:
        return x.shape if x.shape[-len(m.normalized_shape) :] == m.normalized_shape else None
    if kind is nn.AdaptiveAvgPool2d and type(m.output_size) is int:
        return (*x.shape[:2], m.output_size, m.output_size) if x.ndim == 4 else None
    return _convolved(m, x) if kind in operations.CONVOLUTIONS else None


_BATCH_NORMS: dict[type[nn.Module], int] = {nn.BatchNorm2d: 4, nn.BatchNorm3d: 5}
"""With their axes; the one-dimensional norm takes two kinds of input."""


def _convolved(m: Any, x: Tensor) -> tuple[int, ...] | None:
    # String padding and other padding modes are left to the layer: the formula below is for zeros given as numbers.
    if m.padding_mode != "zeros" or isinstance(m.padding, str) or x.ndim != m.weight.ndim or x.shape[1] != m.in_channels:
        return None
    windows = zip(x.shape[2:], m.kernel_size, m.stride, m.padding, m.dilation, strict=True)
    sizes = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in windows]
    return (len(x), m.out_channels, *sizes) if min(sizes) > 0 else None


def holds_tensor(shape: Any) -> bool:
    """Whether a noted shape is that of a tensor, or of something with one in it, and not of plain numbers."""
    if isinstance(shape, dict):
        return any(holds_tensor(s) for s in shape.values())
    if shape is None:
        return False
    # Sizes are numbers, all of them, and nothing else in a shape is one.
    return not shape or isinstance(shape[0], int) or any(holds_tensor(s) for s in shape)
