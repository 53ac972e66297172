"""Removed channels that are constant hand what they contributed to the biases of the layers that read them.

A channel is constant where the weights prove it: a filter of zeros, a norm with gamma = 0, an affine function with slope 0, and
what follows from those channel by channel. With c the constants of the removed channels and W the weights of a layer that reads
them,

    y = W x + b = W' x' + (b + W'' c)        x' the channels that stay, c those that go

is exact where W'' c is the same at every position: always for linear layers, for convolutions without padding, for c = 0. Zero
padding makes it differ at the border; there nothing is folded, and a note says so.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from compress.edits import Keep
from compress.graph import operations
from compress.graph.channel_affine import ChannelAffine
from compress.graph.channels.atom_state import tensors_in
from compress.graph.channels.solve import Channels
from compress.graph.liveness import Liveness
from compress.graph.surgery.remove import staying
from compress.user.wording import many

_UNIFORM = 1e-5
"""Relative spread over positions that is float32 adding the same numbers in another order."""
_READERS = operations.CONVOLUTIONS | operations.TRANSPOSED | {nn.Linear}
_MOVES = operations.MOVEMENT | operations.SIZED | operations.JOINS | operations.PIXELS | {operator.getitem}
_MOVE_METHODS = operations.MOVEMENT_METHODS | operations.SIZED_METHODS | operations.CASTS | {"unbind"}
_TIMES = (operator.mul, operator.imul, torch.mul, "mul", "mul_")


@dataclass(frozen=True)
class Known:
    # 0 where unknown, so that a layer run on `value` alone sees the proven part and nothing else.
    """An activation of which some entries are proven. `value` is 0 where `sure` is False."""

    value: Tensor
    sure: Tensor


def fold(
    module: GraphModule, channels: Channels, edits: Sequence[Keep], inputs: tuple[Tensor, ...]
) -> tuple[GraphModule, tuple[str, ...]]:
    """A copy that computes the same and in which removing constant channels takes nothing away; the module itself if none is.

    Returns:
        The model (solve it again if it is another one: biases may be new) and what a reader of the report should know.
    """
    # Most models have no constant channel; the check by weights alone saves the run.
    stays = staying(channels, edits)
    if bool(stays.all()) or not _anything_constant(module):
        return module, ()
    found: dict[str, list[_Share]] = {}
    try:
        _propagate(module, inputs, lambda node, x: _collect(module, channels, stays, node, x, found))
    except Exception:  # an operation that does not run on zeros: then nothing is proven, and removal is what it always was
        return module, ()  # one path that differs at the border, or between calls, spoils only its own layer
    exact = {path: shares[0] for path, shares in found.items() if _agree(shares)}
    rough = [path for path in found if path not in exact]
    notes: list[str] = []
    if rough:
        layers = ", ".join(rough[:5]) + (" and more" if len(rough) > 5 else "")
        notes.append(
            f"Constant channels were removed in front of {layers}, where their part differs from place to place (zero padding, "
            "or weights used twice) and cannot become a bias: it is lost."
        )
    # A bias of zeros is no change: dead channels that gave 0 need no copy of the model.
    moved = {path: share for path, share in exact.items() if bool(share.bias.any())}
    if not moved:
        return module, tuple(notes)
    module = copy.deepcopy(module)
    for path, share in moved.items():
        _add(module.get_submodule(path), share)
    notes.append(f"The constants of removed channels went into the biases of {many(len(moved), 'layer')}, exactly.")
    return module, tuple(notes)


def _agree(shares: Sequence[_Share]) -> bool:
    """Whether one bias serves every call of a layer."""
    return all(share.exact and torch.equal(share.bias, shares[0].bias) for share in shares)


@dataclass(frozen=True)
class _Share:
    """What constant channels that go contribute to a layer: positions of its input axis, bias, whether a bias says it all."""

    gone: Tensor
    bias: Tensor
    exact: bool


def _collect(
    module: GraphModule, channels: Channels, stays: Tensor, node: Node, x: Known, found: dict[str, list[_Share]]
) -> None:
    path = str(node.target)
    m: Any = module.get_submodule(path)
    weight = channels.tied.get(f"{path}.weight", "")
    dim = 0 if type(m) in operations.TRANSPOSED else 1
    role, labels = channels.axes.get((weight, dim), ("", torch.empty(0)))
    if role != "in" or bool(stays[labels].all()):
        return
    axis = x.value.ndim - 1 if isinstance(m, nn.Linear) else 1
    others = [d for d in range(x.value.ndim) if d != axis]
    size = x.value.shape[axis]
    # repeat: behind a flatten, a class of channels covers several columns of a linear layer.
    gone = (~stays[labels]).repeat(size // len(labels)) & x.sure.all(dim=others) if others else x.sure
    view = [1] * x.value.ndim
    view[axis] = size
    y = _bare(m, m.weight)(x.value * gone.view(view))  # W'' c of the docstring, at every position
    flat = y.movedim(-1 if isinstance(m, nn.Linear) else 1, 0)
    flat = flat.reshape(len(flat), -1)
    # Relative to the largest output, since the contributions of several channels may cancel.
    uniform = bool((flat.amax(1) - flat.amin(1) <= _UNIFORM * flat.abs().max()).all())
    # A weight that is used twice, or a flatten with many columns per channel, has no single bias to take it.
    alone = size == len(labels) and sum(first == weight for first in channels.tied.values()) == 1
    found.setdefault(path, []).append(_Share(gone[: len(labels)], flat[:, 0], uniform and (alone or not bool(flat.any()))))


def _add(m: Any, share: _Share) -> None:
    with torch.no_grad():
        dim = 0 if type(m) in operations.TRANSPOSED else 1
        # Zeroed, so that before and after removal the model computes the same: the exactness check compares these two.
        m.weight.index_fill_(dim, share.gone.nonzero()[:, 0], 0.0)
        if m.bias is None:
            m.bias = nn.Parameter(share.bias.clone())
        else:
            m.bias += share.bias


def _anything_constant(module: GraphModule) -> bool:
    """Whether any layer has a filter of zeros, a norm a gamma or an affine function a slope of 0: without those nothing is
    constant.
    """
    for m in module.modules():
        weight = getattr(m, "slope" if type(m) is ChannelAffine else "weight", None)
        if not isinstance(weight, Tensor):
            continue
        if type(m) in _READERS:
            rows = weight.movedim(1, 0) if type(m) in operations.TRANSPOSED else weight
            if bool((rows.flatten(1) == 0).all(1).any()):
                return True
        elif weight.ndim == 1 and bool((weight == 0).any()):
            return True
    return False


# ---- which entries are known -----------------------------------------------------------------------------------------------


def _propagate(module: GraphModule, inputs: tuple[Tensor, ...], visit: Callable[[Node, Known], None]) -> None:
    """Run the graph on what is known; `visit` sees the input of every layer that mixes channels."""
    values: dict[Node, Any] = {}
    live = Liveness(module.graph)
    given = iter(inputs)
    look_up: Callable[[Node], Any] = values.__getitem__
    with torch.no_grad():
        for node in module.graph.nodes:
            if node.op == "placeholder":
                # Zeros, but nothing in them is known: inputs are never constant.
                values[node] = _unsure(torch.zeros_like(next(given)))
            elif node.op == "get_attr":
                t = operator.attrgetter(str(node.target))(module)
                values[node] = Known(t, torch.ones_like(t, dtype=torch.bool)) if isinstance(t, Tensor) else t
            elif node.op != "output":
                args, kwargs = map_arg(node.args, look_up), map_arg(node.kwargs, look_up)
                if node.op == "call_module":
                    values[node] = _layer(module, node, args, kwargs, visit)
                else:
                    values[node] = _operation(node, args, kwargs)
            for source in live.consumed(node):
                del values[source]


def _known(value: Tensor, sure: Tensor) -> Known:
    sure = sure.expand(value.shape)
    # Unknown entries may be inf or NaN (log of 0), and would spread through zero weights.
    return Known(torch.where(sure, value, torch.zeros_like(value)), sure)


def _unsure(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Known(torch.zeros_like(value), torch.zeros(value.shape, dtype=torch.bool))
    if isinstance(value, list | tuple):
        parts = [_unsure(v) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return {k: _unsure(v) for k, v in value.items()} if isinstance(value, dict) else value


def _each(value: Any, part: Callable[[Known], Tensor]) -> Any:
    """Nested arguments with one tensor in place of every Known."""
    if isinstance(value, Known):
        return part(value)
    if isinstance(value, list | tuple):
        return [_each(v, part) for v in value] if isinstance(value, list) else _tuple(value, part)
    return {k: _each(v, part) for k, v in value.items()} if isinstance(value, dict) else value


def _tuple(value: tuple[Any, ...], part: Callable[[Known], Tensor]) -> Any:
    return tuple(_each(v, part) for v in value) if type(value) is tuple else value


def _bare(m: Any, weight: Tensor) -> Any:
    """The layer without its bias and with other weights."""
    # A shallow copy with its own dictionary of parameters: forward reads those, and the model keeps its own.
    bare = copy.copy(m)
    bare._parameters = {**m._parameters, "weight": weight, "bias": None}
    return bare


def _layer(
    module: GraphModule, node: Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], visit: Callable[[Node, Known], None]
) -> Any:
    m: Any = module.get_submodule(str(node.target))
    kind, x = type(m), args[0] if args else None
    # clones, as the layer may work in place
    value = m(*_each(args, lambda k: k.value.clone()), **_each(dict(kwargs), lambda k: k.value.clone()))
    if not isinstance(x, Known) or not isinstance(value, Tensor) or m._forward_hooks or m._forward_pre_hooks:
        return _unsure(value)
    if kind in _READERS:
        visit(node, x)
        # A nonzero weight on an unsure input makes the output unsure; run as a convolution of 0/1 maps it counts such meetings.
        doubt = _bare(m, nn.Parameter((m.weight != 0).to(value.dtype), requires_grad=False))((~x.sure).to(value.dtype))
        return _known(value, doubt == 0)
    if kind in operations.SAME or kind is nn.PReLU:
        return _known(value, x.sure)
    if kind in operations.POOLS:
        # A pool mixes positions of a channel, so one unsure position makes the whole channel unsure.
        return _known(value, _whole_channels(x.sure, value.ndim))
    if kind in (nn.Flatten, nn.ChannelShuffle) or kind in operations.PIXEL_SHUFFLES:
        return _known(value, m(x.sure.to(value.dtype)) > 0)
    if kind is ChannelAffine:
        flat = (m.slope == 0).view(-1, *[1] * (value.ndim - 2 if m.axis == 1 else 0))
        return _known(value, x.sure | flat)
    if (kind in operations.PER_CHANNEL_NORMS or kind is nn.GroupNorm) and m.weight is not None:
        off = (m.weight == 0).view(1, -1, *[1] * (value.ndim - 2))
        # Without running statistics a norm's output depends on the batch, unless gamma is 0.
        running = getattr(m, "running_mean", None) is not None
        return _known(value, (x.sure | off) if running else off)
    return _unsure(value)


def _knowns(value: Any) -> list[Known]:
    if isinstance(value, Known):
        return [value]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return [k for v in value for k in _knowns(v)] if isinstance(value, list | tuple) else []


def _whole_channels(sure: Tensor, ndim: int) -> Tensor:
    """Whether a channel (axis 1) is known everywhere."""
    return sure.flatten(2).all(2).view(*sure.shape[:2], *[1] * (ndim - 2)) if sure.ndim > 2 else sure


def _operation(node: Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    target: Any = node.target

    def call(part: Callable[[Known], Tensor]) -> Any:
        a, k = _each(args, part), _each(dict(kwargs), part)
        return target(*a, **k) if callable(target) else getattr(a[0], target)(*a[1:], **k)

    value = call(lambda k: k.value.clone())
    if not tensors_in(value):
        return value
    known = _knowns((args, kwargs))
    # Indexed by a tensor: moving certainty the same way would need a certain index.
    indexed = target is operator.getitem and bool(_knowns(args[1]))
    if (target in _MOVES and not indexed) or (node.op == "call_method" and target in _MOVE_METHODS):
        sure = call(lambda k: k.sure.to(k.value.dtype))
        if isinstance(value, Tensor):
            return _known(value, sure > 0)
        # chunk, split and unbind give several tensors.
        return tuple(_known(v, s > 0) for v, s in zip(value, sure, strict=True))
    if target in operations.ELEMENTWISE or (node.op == "call_method" and target in operations.ELEMENTWISE_METHODS):
        sure = torch.ones((), dtype=torch.bool)
        for k in known:
            sure = sure & k.sure
        if target in _TIMES:
            # 0 times anything: sure, even where the other factor is not.
            for k in known:
                sure = sure | (k.sure & (k.value == 0))
        return _known(value, sure)
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    if name in ("mean", "sum", "amax") and len(known) == 1:
        # Sums mix along the axes, so a single unsure entry (a 1 in the inverted map) spoils the result.
        return _known(value, call(lambda k: (~k.sure).to(k.value.dtype)) == 0)
    if target in operations.POOLING and len(known) == 1:
        return _known(value, _whole_channels(known[0].sure, value.ndim))
    return _unsure(cast(object, value))
