"""Channels are taken out: one index_select per parameter axis, on a copy. No weight changes its value.

`keep` removes, `mask` zeroes the consumers' weights of the same channels instead: the two must agree on every input, which is what
each run checks before it refits or trains anything.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from compress.errors import PlanMismatch
from compress.graph.channels import Channels
from compress.plan import Keep


def keep(module: GraphModule, channels: Channels, edits: Sequence[Keep]) -> GraphModule:
    """A copy of the model with only the kept channels of the named groups.

    Raises:
        PlanMismatch: a group that does not exist, has another number of channels, or is frozen.
    """
    stays = _stays(channels, edits)
    module = copy.deepcopy(module)
    if not edits:
        return module
    cut: set[tuple[str, int]] = set()
    for (tensor, dim), (_, labels) in channels.axes.items():
        kept = stays[labels]
        if not bool(kept.all()):
            cut.add((tensor, dim))
            for name in (n for n, first in channels.tied.items() if first == tensor):
                _select(module, name, dim, kept.nonzero()[:, 0])
    _tie_again(module, channels, {tensor for tensor, _ in cut})
    for path in dict.fromkeys(
        name.rpartition(".")[0] for name, first in channels.tied.items() if any(first == t for t, _ in cut)
    ):
        grouped = any((channels.tied[f"{path}.weight"], 1) == c for c in cut) if f"{path}.weight" in channels.tied else False
        _count_again(module.get_submodule(path), keeps_groups=grouped)
    for node in module.graph.nodes:
        if node.name in channels.sized:
            into, out = (stays[labels] for labels in channels.sized[node.name])
            if not bool(into.all()):
                _count_arguments(node, channels.sized[node.name], into, out)
        node.meta.pop("shape", None)
    module.recompile()
    return module


def mask(module: GraphModule, channels: Channels, edits: Sequence[Keep]) -> GraphModule:
    """A copy of the model in which the consumers of the removed channels have zero weights for them."""
    stays = _stays(channels, edits)
    module = copy.deepcopy(module)
    with torch.no_grad():
        for (tensor, dim), (role, labels) in channels.axes.items():
            if role == "in":
                _tensor(module, tensor).index_fill_(dim, (~stays[labels]).nonzero()[:, 0], 0.0)
    return module


def _stays(channels: Channels, edits: Sequence[Keep]) -> Tensor:
    """Whether each class stays, shape (number of classes,)."""
    size = 1 + max((int(labels.max()) for _, labels in channels.axes.values()), default=0)
    size = max([size, *(1 + int(t.max()) for pair in channels.sized.values() for t in pair if t.numel())])
    stays = torch.ones(size, dtype=torch.bool)
    for edit in edits:
        group = channels.group(edit.layer)
        if group.channels != edit.channels:
            raise PlanMismatch(
                f"The plan expects {edit.channels} channels on {edit.layer}, this model has {group.channels}. Run 'compress plan' again."
            )
        if group.frozen is not None and len(edit.keep) < edit.channels:
            raise PlanMismatch(
                f"The plan removes channels of {edit.layer}, which must stay: {group.frozen}. Run 'compress plan' again."
            )
        stays[list(group.labels)] = False
        stays[[group.labels[k] for k in edit.keep]] = True
    return stays


def _tensor(module: nn.Module, name: str) -> Any:
    path, _, last = name.rpartition(".")
    return getattr(module.get_submodule(path), last)


def _select(module: nn.Module, name: str, dim: int, index: Tensor) -> None:
    path, _, last = name.rpartition(".")
    owner = module.get_submodule(path)
    old = getattr(owner, last)
    new = old.detach().index_select(dim, index.to(old.device)).clone()
    if isinstance(old, nn.Parameter):
        setattr(owner, last, nn.Parameter(new, requires_grad=old.requires_grad))
    else:
        owner.register_buffer(last, new, persistent=last not in owner._non_persistent_buffers_set)


def _tie_again(module: nn.Module, channels: Channels, cut: set[str]) -> None:
    """Tensors that had several names before have them again."""
    for name, first in channels.tied.items():
        if name != first and first in cut:
            path, _, last = name.rpartition(".")
            setattr(module.get_submodule(path), last, _tensor(module, first))


def _count_again(m: Any, keeps_groups: bool) -> None:
    """Make a module's own numbers agree with its tensors."""
    if isinstance(m, nn.modules.conv._ConvNd):
        transposed = isinstance(m, nn.modules.conv._ConvTransposeNd)
        if m.groups > 1 and not keeps_groups:
            m.groups = m.weight.shape[0] * m.groups // (m.in_channels if transposed else m.out_channels)
        first, second = m.weight.shape[0], m.weight.shape[1] * m.groups
        m.in_channels, m.out_channels = (first, second) if transposed else (second, first)
    elif isinstance(m, nn.Linear):
        m.out_features, m.in_features = m.weight.shape
    elif isinstance(m, nn.GroupNorm) and m.affine:
        m.num_groups = m.num_groups * m.weight.shape[0] // m.num_channels
        m.num_channels = m.weight.shape[0]
    elif isinstance(m, nn.modules.batchnorm._NormBase):
        sizes = [t for t in (m.weight, m.running_mean) if t is not None]
        m.num_features = sizes[0].shape[0] if sizes else m.num_features
    elif isinstance(m, nn.PReLU):
        m.num_parameters = m.weight.shape[0]


def _count_arguments(node: Node, labels: tuple[Tensor, Tensor], into: Tensor, out: Tensor) -> None:
    """Rewrite constant sizes of a node for the channels that stay. `into`, `out`: whether each entry of its tensors stays."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name in ("chunk", "split"):
        dim = _argument(node, 2, "dim", 0) % into.ndim
        _rewrite_split(node, _per_index(into, dim), dim, name)
    elif node.target is operator.getitem:
        _rewrite_slices(node, into)
    else:
        sizes = {d: int(_per_index(out, d).sum()) for d in range(out.ndim) if _varies(labels[1], d)}
        _rewrite_sizes(node, out.ndim, sizes)


def _varies(labels: Tensor, dim: int) -> bool:
    return labels.shape[dim] > 1 and bool((labels != labels.narrow(dim, 0, 1)).any())


def _per_index(stays: Tensor, dim: int) -> Tensor:
    """Whether each index along an axis stays: one of its entries does. The rest of the tensor is rectangular by construction."""
    return stays.movedim(dim, 0).reshape(stays.shape[dim], -1).any(1)


def _argument(node: Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _rewrite_split(node: Node, stays: Tensor, dim: int, name: str) -> None:
    spec = _argument(node, 1, "chunks" if name == "chunk" else "split_size_or_sections", None)
    if name == "split" and "split_size" in node.kwargs:
        spec = node.kwargs["split_size"]
    pieces = stays.chunk(spec) if name == "chunk" else stays.split(spec if isinstance(spec, int) else list(spec))
    sizes = [int(piece.sum()) for piece in pieces]
    node.target = "split" if node.op == "call_method" else torch.split
    node.args, node.kwargs = (node.args[0], sizes), {"dim": dim}


def _rewrite_slices(node: Node, stays: Tensor) -> None:
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    taken = sum(isinstance(i, int | slice) for i in index)
    new: list[Any] = []
    dim = 0
    for i in index:
        if i is Ellipsis:
            dim += stays.ndim - taken
        elif isinstance(i, int | slice):
            if isinstance(i, slice) and i != slice(None):
                kept = _per_index(stays, dim)
                start, stop, _ = slice(_whole(i.start), _whole(i.stop)).indices(len(kept))
                before = int(kept[:start].sum())
                i = i if bool(kept.all()) else slice(before, before + int(kept[start:stop].sum()))
            dim += 1
        new.append(i)
    node.args = (node.args[0], tuple(new))


def _whole(bound: Any) -> Any:
    """A bound that is computed in the graph counts something else than channels; the solver has frozen those."""
    return None if isinstance(bound, Node) else bound


def _rewrite_sizes(node: Node, ndim: int, sizes: dict[int, int]) -> None:
    """view(x, a, b), view(x, (a, b)), reshape(x, shape=...), expand, unflatten(x, dim, sizes)."""
    if node.target in ("unflatten", torch.unflatten):
        dim = _argument(node, 1, "dim", 0)
        old = list(_argument(node, 2, "sizes", ()))
        start = dim % (ndim - len(old) + 1)
        new = [sizes.get(start + i, size) if size != -1 else -1 for i, size in enumerate(old)]
        node.args, node.kwargs = (node.args[0], dim, tuple(new)), {}
        return
    packed = len(node.args) == 2 and isinstance(node.args[1], list | tuple)
    old = list(node.args[1]) if packed else list(node.args[1:]) or list(next(iter(node.kwargs.values())))
    new = [size if isinstance(size, int) and size == -1 else sizes.get(i, size) for i, size in enumerate(old)]
    node.args = (node.args[0], tuple(new)) if packed or node.kwargs else (node.args[0], *new)
    node.kwargs = {}
