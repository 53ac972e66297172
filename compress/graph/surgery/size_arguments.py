"""Constant arguments that count channels follow the channels that stay.

`x.view(b, 8, 32, h, w)`, `x.chunk(2, 1)`, `x[:, :64]`, the groups of a functional convolution, the numbers inside a GroupNorm.
An argument that the graph computes stays computed, unless it was computed from a count of channels. A number that is computed
from such a count and meets every entry (`x / x.shape[1]`) keeps the value that it had.
"""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.modules.batchnorm import _NormBase

from compress.graph.channels.atom_state import Sized
from compress.graph.channels.atoms import along
from compress.graph.channels.propagation import differs
from compress.graph.operations import ELEMENTWISE, ELEMENTWISE_METHODS, FUNCTIONAL_CONVOLUTIONS
from compress.graph.partial_norm import PartialNorm, partial_norm
from compress.graph.trace.lines import stands_for


def rewrite(module: GraphModule, node: Node, sized: Sized, stays: Tensor, counted: frozenset[str], also: bool = False) -> None:
    """Rewrite one node, or the numbers of the layer that it calls.

    Args:
        module: the model that the node belongs to.
        node: what is rewritten.
        sized: its arguments before, and the classes of its input and output.
        stays: whether each class stays.
        counted: nodes that compute a number from a count of channels.
        also: whether it has been rewritten for another axis already.
    """
    touched = not bool(stays[sized.into].all() and stays[sized.out].all())
    # A number computed from a count changes by itself, and could be wrong where the channels did not change.
    if not touched and not any(source.name in counted for source in node.all_input_nodes):
        return
    if also and not set(_counts(sized.out, stays)) | set(_counts(sized.into, stays)):
        return
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_module":
        _count_norm(module, str(node.target), sized, stays)
    elif node.target is F.scaled_dot_product_attention:
        if _argument(sized, 6, "scale") is None:
            node.kwargs = {**node.kwargs, "scale": sized.into.shape[-1] ** -0.5}
    elif node.target in FUNCTIONAL_CONVOLUTIONS:
        _count_groups(node, sized, stays)
    elif name in ("chunk", "split"):
        _rewrite_split(node, sized, stays, name, counted, also)
    elif node.target is operator.getitem:
        _rewrite_slices(node, sized, stays, counted)
    elif name == "squeeze":
        # squeeze() without axes would also drop an axis that shrinks to one channel.
        if len(sized.args) == 1 and not sized.kwargs:
            plain = tuple(d for d in range(sized.into.ndim) if not differs(sized.into, d))
            node.args = (node.args[0], plain)
    elif name == "unflatten":
        _rewrite_unflatten(node, sized, stays)
    elif node.target in (ELEMENTWISE_METHODS if node.op == "call_method" else ELEMENTWISE):
        _keep_numbers(node, sized, counted)
    elif name == "mean":
        _average(node, sized, stays)
    elif name != "batch_norm":  # its arguments are tensors, cut elsewhere
        _rewrite_sizes(node, sized, stays, counted, expands=name == "expand")


def _kept(labels: Tensor, stays: Tensor, dim: int) -> Tensor:
    """Whether each position of an axis stays; the tensor is rectangular, so any entry along the axis tells."""
    return stays[along(labels, dim)] if differs(labels, dim) else torch.ones(labels.shape[dim], dtype=torch.bool)


def _counts(labels: Tensor, stays: Tensor) -> dict[int, int]:
    """Axes along which the channels differ -> how many of them stay."""
    return {d: int(_kept(labels, stays, d).sum()) for d in range(labels.ndim) if differs(labels, d)}


def _argument(sized: Sized, position: int, *names: str) -> Any:
    if len(sized.args) > position:
        return sized.args[position]
    return next((sized.kwargs[n] for n in names if n in sized.kwargs), None)


def _count_norm(module: GraphModule, path: str, sized: Sized, stays: Tensor) -> None:
    m = module.get_submodule(path)
    if isinstance(m, nn.LayerNorm | nn.RMSNorm | PartialNorm) or (isinstance(m, nn.GroupNorm) and m.num_groups == 1):
        axis = 1 if isinstance(m, nn.GroupNorm) else getattr(m, "axis", -1)
        module.set_submodule(path, partial_norm(m, int(_kept(sized.into, stays, axis % sized.into.ndim).sum())))
        return
    channels = int(_kept(sized.into, stays, 1).sum())
    if isinstance(m, nn.GroupNorm):
        m.num_groups = m.num_groups * channels // m.num_channels
        m.num_channels = channels
    elif isinstance(m, _NormBase):
        m.num_features = channels


def _count_groups(node: Node, sized: Sized, stays: Tensor) -> None:
    """conv2d(x, weight, bias, stride, padding, dilation, groups), where whole groups have gone."""
    groups = _argument(sized, 6, "groups") or 1
    kept = int(_kept(sized.out, stays, 1).sum())
    if groups > 1:
        node.kwargs = {**node.kwargs, "groups": groups * kept // sized.out.shape[1]}
        # The arguments before it stay in place; groups, the seventh, is given by name from now on.
        node.args = node.args[:6]


def _rewrite_split(node: Node, sized: Sized, stays: Tensor, name: str, counted: frozenset[str], also: bool) -> None:
    spec = _argument(sized, 1, "chunks", "split_size", "split_size_or_sections")
    dim = (_argument(sized, 2, "dim") or 0) % sized.into.ndim
    if not differs(sized.into, dim) and (also or not any(source.name in counted for source in node.all_input_nodes)):
        return  # the sizes are those of another axis, and may follow the input
    kept = _kept(sized.into, stays, dim)
    # The real chunk and split say which positions fall into which piece.
    pieces = kept.chunk(spec) if name == "chunk" else kept.split(spec if isinstance(spec, int) else list(spec))
    source = node.args[0] if node.args else next(iter(node.kwargs.values()))
    # Pieces may differ in size by now, which chunk cannot express: split by sizes.
    node.target = "split" if node.op == "call_method" else torch.split
    node.args, node.kwargs = (source, [int(piece.sum()) for piece in pieces]), {"dim": dim}


def _rewrite_slices(node: Node, sized: Sized, stays: Tensor, counted: frozenset[str]) -> None:
    def entries(index: Any) -> tuple[Any, ...]:
        return cast(tuple[Any, ...], index) if isinstance(index, tuple) else (index,)

    old, plain = entries(node.args[1]), entries(sized.args[1])
    new: list[Any] = []
    dim = 0
    for i, value in zip(old, plain, strict=True):
        if value is Ellipsis:
            dim += sized.into.ndim - sum(isinstance(k, int | slice) for k in plain)
        elif value is not None:
            kept = _kept(sized.into, stays, dim) if isinstance(value, slice) else torch.ones(1, dtype=torch.bool)
            if isinstance(value, slice) and value != slice(None) and not bool(kept.all()):
                # indices resolves negative and missing ends as Python would.
                start, stop, _ = value.indices(len(kept))
                before = int(kept[:start].sum())
                i = slice(before, before + int(kept[start:stop].sum()))
            elif _depends(i, counted):
                i = value
            dim += 1
        new.append(i)
    node.args = (node.args[0], tuple(new))


def _average(node: Node, sized: Sized, stays: Tensor) -> None:
    """A mean over channels stays one over as many as there were."""
    (kept,) = [_kept(sized.into, stays, d) for d in range(sized.into.ndim) if differs(sized.into, d)]
    with node.graph.inserting_after(node):
        scaled = node.graph.call_function(operator.mul, (node, float(kept.sum()) / len(kept)))
    stands_for(scaled, node)
    node.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)


def _of_input(size: object, counted: frozenset[str]) -> bool:
    """Whether a size is computed from one of the input that counts no channels, as a number of samples, windows or places is."""
    if not isinstance(size, Node):
        return False
    computed = size.target in (operator.add, operator.floordiv, operator.mul, operator.sub)
    return any(_of_input(one, counted) for one in size.args) if computed else size.name not in counted


def _depends(value: Any, counted: frozenset[str]) -> bool:
    """Whether an argument holds a number that was computed from a count of channels."""
    parts = (value.start, value.stop) if isinstance(value, slice) else (value,)
    return any(isinstance(part, Node) and part.name in counted for part in parts)


def _keep_numbers(node: Node, sized: Sized, counted: frozenset[str]) -> None:
    node.args = tuple(old if _depends(now, counted) else now for now, old in zip(node.args, sized.args, strict=True))
    node.kwargs = {key: sized.kwargs[key] if _depends(now, counted) else now for key, now in node.kwargs.items()}


def _rewrite_unflatten(node: Node, sized: Sized, stays: Tensor) -> None:
    dim, old = _argument(sized, 1, "dim") % sized.into.ndim, _argument(sized, 2, "sizes", "unflattened_size")
    counts = _counts(sized.out, stays)
    new = tuple(-1 if size == -1 else counts.get(dim + i, size) for i, size in enumerate(old))
    node.args, node.kwargs = (node.args[0], dim, new), {}


def _rewrite_sizes(node: Node, sized: Sized, stays: Tensor, counted: frozenset[str], expands: bool) -> None:
    """view(x, a, b), view(x, (a, b)), reshape(x, shape=...), expand(x, a, b).

    The batch stays computed. Where channels are folded into it (heads times batch), its size becomes the -1 of the call.
    """
    if len(sized.args) > 1:
        loose = isinstance(sized.args[1], int)
        plain, given = (sized.args[1:], node.args[1:]) if loose else (sized.args[1], cast(Any, node.args[1]))
    else:
        plain, given = next(iter(sized.kwargs.values())), cast(Any, next(iter(node.kwargs.values())))
    if isinstance(given, Node):  # x.view(y.shape), x.view(y.shape[:-1] + (-1,)): all sizes in one
        given = plain = (-1, *sized.out.shape[1:])
    counts = _counts(sized.out, stays)
    new: list[Any] = []
    own = {d + sized.out.ndim - sized.into.ndim for d in range(sized.into.ndim) if differs(sized.into, d)}
    for d, (now, size) in enumerate(zip(given, plain, strict=True)):
        # expand takes -1 for "as it is", which is right for any number of channels that are expanded along other axes.
        if size == -1 or (expands and d in counts and d in own):
            new.append(-1)
        else:
            # Where all stay, as positions do, a size may follow the input.
            goes = counts.get(d, sized.out.shape[d]) != sized.out.shape[d]
            new.append(counts[d] if goes else size if _depends(now, counted) else now)
    # view allows one -1 only: the batch takes it, and what was -1 becomes a number.
    folded = [d for d, now in enumerate(given) if d in counts and (sized.batch if d == 0 else _of_input(now, counted))]
    if folded and not expands:
        sizes = [counts.get(d, sized.out.shape[d]) if size == -1 else size for d, size in enumerate(new)]
        new = [-1 if d == folded[0] else size for d, size in enumerate(sizes)]
    node.args, node.kwargs = (node.args[0], *new) if node.op == "call_method" else (node.args[0], tuple(new)), {}
