"""Channels are taken out: one index_select per parameter axis, on a copy. No weight changes its value.

`keep` removes, `mask` zeroes the consumers' weights of the same channels instead, and the weights that make them where a norm
takes its statistics over them: the two must agree on every input, which is what each run checks before it refits or trains
anything.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from compress.edits import Keep
from compress.errors import PlanMismatch
from compress.graph.channels.groups import WITHIN
from compress.graph.channels.solve import Channels, solve
from compress.graph.surgery.size_arguments import rewrite
from compress.graph.trace.sharing import sharing
from compress.user.wording import many


def keep(module: GraphModule, channels: Channels, edits: Sequence[Keep]) -> GraphModule:
    """A copy of the model with only the kept channels of the named groups.

    Channels within heads go first, heads then: where a single head is left, an axis of one entry no longer tells what it is of.

    Raises:
        PlanMismatch: a group that does not exist, has another number of channels, is frozen, or is named twice.
    """
    if not (inner := _inner(channels, edits)) or channels.within is None:
        return _kept(module, channels, edits)
    thinner = _kept(module, channels.within, inner)
    heads = [edit for edit in edits if not channels.group(edit.layer).inner]
    return _kept(thinner, solve(thinner, channels.inputs), heads) if heads else thinner


def _kept(module: GraphModule, channels: Channels, edits: Sequence[Keep]) -> GraphModule:
    stays = staying(channels, edits)
    # Always a copy: the pipeline compares it with the masked model, and may return to the one before.
    if bool(stays.all()):
        return copy.deepcopy(module)
    whole, module = module, sharing(module, single=False)
    aliases: dict[str, list[str]] = {}
    for name, first in channels.tied.items():
        aliases.setdefault(first, []).append(name)
    cut: set[str] = set()
    for (tensor, dim), (_, labels) in channels.axes.items():
        kept = stays[labels]
        if not bool(kept.all()):
            cut.add(tensor)
            for name in aliases[tensor]:
                _select(module, name, dim, kept.nonzero()[:, 0])
    for tensor in cut:
        # index_select has made as many tensors as there are names.
        for name in aliases[tensor][1:]:
            _put(module, name, _tensor(module, tensor))  # a tensor of several names has them again
    # Once per module: in_channels and groups depend on both axes of its weight.
    for path in dict.fromkeys(name.rpartition(".")[0] for tensor in cut for name in aliases[tensor]):
        weight = channels.tied.get(f"{path}.weight", "")
        _count_again(module.get_submodule(path), keeps_groups=weight in channels.thinned)
    for node in module.graph.nodes:
        if node.name in channels.sized:
            entry = channels.sized[node.name]
            rewrite(module, node, entry, stays, channels.counted)
            for other in entry.also:
                rewrite(module, node, other, stays, channels.counted, also=True)
        # Noted shapes are those of the larger model.
        node.meta.pop("shape", None)
    _own(module, whole)
    module.recompile()
    return module


def _own(module: nn.Module, whole: nn.Module) -> None:
    """Copy what is not smaller and therefore still the memory of the model before: so the two never stand there as a whole."""
    theirs = {t.untyped_storage().data_ptr() for t in (*whole.parameters(), *whole.buffers())}
    for mine in (*module.parameters(), *module.buffers()):
        if mine.untyped_storage().data_ptr() in theirs:
            mine.data = mine.data.clone()


def mask(module: GraphModule, channels: Channels, edits: Sequence[Keep]) -> GraphModule:
    """A copy of the model in which the consumers of the removed channels have zero weights for them.

    Channels that count as zeros in a norm are zero: whatever makes them has zero weights, too.
    """
    whole, inner = _masked(module, channels, edits), _inner(channels, edits)
    return _masked(whole, channels.within, inner) if channels.within is not None and inner else whole


def _inner(channels: Channels, edits: Sequence[Keep]) -> list[Keep]:
    """The edits within heads, by the names that their groups have where nothing else goes."""
    return [replace(e, layer=e.layer.removesuffix(WITHIN)) for e in edits if channels.group(e.layer).inner]


def _masked(module: GraphModule, channels: Channels, edits: Sequence[Keep]) -> GraphModule:
    stays = staying(channels, edits)
    zeroed = torch.zeros(channels.classes, dtype=torch.bool)
    zeroed[list(channels.zeroed)] = True
    module = copy.deepcopy(module)
    with torch.no_grad():
        for (tensor, dim), (role, labels) in channels.axes.items():
            if role == "in":
                # Norms in between still see the channel, so only what its consumers read can be zeroed exactly.
                _tensor(module, tensor).index_fill_(dim, (~stays[labels]).nonzero()[:, 0], 0.0)
            else:
                _tensor(module, tensor).index_fill_(dim, (~stays & zeroed)[labels].nonzero()[:, 0], 0.0)
    return module


def staying(channels: Channels, edits: Sequence[Keep]) -> Tensor:
    """Whether each class stays, shape (number of classes,); edits within heads are about others."""
    stays = torch.ones(channels.classes, dtype=torch.bool)
    named: set[str] = set()
    for edit in edits:
        group = channels.group(edit.layer)
        if edit.layer in named:
            raise PlanMismatch(f"The plan names {edit.layer} twice, needed is one edit per layer. Run 'compress plan' again.")
        named.add(edit.layer)
        if group.channels != edit.channels:
            raise PlanMismatch(
                f"The plan expects {many(edit.channels, 'channel')} on {edit.layer}, this model has {group.channels}. "
                "Run 'compress plan' again."
            )
        if group.frozen is not None and len(edit.keep) < edit.channels:
            raise PlanMismatch(
                f"The plan removes channels of {edit.layer}, which must stay: {group.frozen}. Run 'compress plan' again."
            )
        if group.inner:
            continue
        # All of the group off, then the kept on: labels of other groups are not touched.
        stays[list(group.labels)] = False
        stays[[group.labels[k] for k in edit.keep]] = True
    return stays


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, last = name.rpartition(".")
    return module.get_submodule(path), last


def _tensor(module: nn.Module, name: str) -> Tensor:
    return getattr(*_owner(module, name))


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner, last = _owner(module, name)
    if isinstance(tensor, nn.Parameter):
        setattr(owner, last, tensor)
    else:
        # A buffer left out of the state_dict stays so.
        owner.register_buffer(last, tensor, persistent=last not in owner._non_persistent_buffers_set)


def _select(module: nn.Module, name: str, dim: int, index: Tensor) -> None:
    old = _tensor(module, name)
    new = old.detach().index_select(dim, index.to(old.device))
    _put(module, name, nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new)


def _count_again(m: Any, keeps_groups: bool) -> None:
    """Make a module's own numbers agree with its tensors."""
    if isinstance(m, _ConvNd):
        transposed = isinstance(m, _ConvTransposeNd)
        if m.groups > 1 and not keeps_groups:
            # Before in_channels below, which are computed with the new number of groups.
            m.groups = m.weight.shape[0] * m.groups // (m.in_channels if transposed else m.out_channels)
        first, second = m.weight.shape[0], m.weight.shape[1] * m.groups
        m.in_channels, m.out_channels = (first, second) if transposed else (second, first)
    elif isinstance(m, nn.Linear):
        m.out_features, m.in_features = m.weight.shape
    elif isinstance(m, nn.Embedding):
        m.num_embeddings, m.embedding_dim = m.weight.shape
    elif isinstance(m, _NormBase):  # BatchNorm and InstanceNorm; either may lack weight or statistics
        sizes = [t for t in (m.weight, m.running_mean) if t is not None]
        m.num_features = sizes[0].shape[0] if sizes else m.num_features
    elif isinstance(m, nn.PReLU):
        m.num_parameters = m.weight.shape[0]
    elif type(m) in _GATES:
        _count_units(m, _GATES[type(m)])


_GATES = {nn.RNN: 1, nn.RNNCell: 1, nn.GRU: 3, nn.GRUCell: 3, nn.LSTM: 4, nn.LSTMCell: 4}


def _count_units(m: Any, gates: int) -> None:
    """A recurrent layer's own numbers; its rows are those of all gates."""
    cell = type(m) in (nn.RNNCell, nn.GRUCell, nn.LSTMCell)
    rows, m.input_size = (m.weight_ih if cell else m.weight_ih_l0).shape
    m.hidden_size = rows // gates
    if not cell:
        m.proj_size = m.weight_hr_l0.shape[0] if m.proj_size else 0
        m.flatten_parameters()  # cuDNN wants the weights of a layer in one piece
