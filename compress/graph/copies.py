"""A copy of a model that has modules of its own and shares every parameter and buffer with the model.

What tracing changes (modes, classes, names) belongs to modules; weights, which are nearly all of the memory, are only ever read:
a stage that changes them copies them first.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

_PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size)
_HELD = ("_parameters", "_buffers", "_modules")
_HOOKS = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, dict)) - set(_HELD)
_OWN_WORDS = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__")
_SET_STATE = (nn.Module.__setstate__, _ConvNd.__setstate__)
_COMPILED = "_compiled_call_impl"  # torch.compile's; torch leaves it out of copies, too


def sharing(model: nn.Module) -> nn.Module:
    """The copy: fp32, every parameter trainable. Tensors that are fp32 already share their memory with the model's."""
    memo: dict[int, Any] = {}
    every = list(model.modules())
    for m in every:
        for t in (*m._parameters.values(), *m._buffers.values()):
            if type(t) in (nn.Parameter, Tensor):
                memo.setdefault(id(t), _shared(t))
    simple = [m for m in every if _copied_by_entries(type(m))]
    for m in simple:
        memo[id(m)] = type(m).__new__(type(m))
    for m in simple:
        own = memo[id(m)].__dict__
        own.update(vars(m))
        for name, value in vars(m).items():
            if type(value) not in _PLAIN:
                own[name] = type(value)() if name in _HOOKS and not value else _copied(name, value, memo)
        own.pop(_COMPILED, None)
    return copy.deepcopy(model, memo)


def _shared(t: Any) -> Tensor:
    own = t.detach().float() if t.is_floating_point() else t.detach()
    return nn.Parameter(own, own.is_floating_point()) if isinstance(t, nn.Parameter) else own


def _copied_by_entries(kind: Any) -> bool:
    """Whether to copy a module of this class is to copy its entries, as for nn.Module: no word of its own about copying."""
    silent = all(getattr(kind, word, None) == getattr(nn.Module, word, None) for word in _OWN_WORDS)
    return silent and kind.__setstate__ in _SET_STATE


def _copied(name: str, value: Any, memo: dict[int, Any]) -> Any:
    kind: Any = type(value)
    if name in _HELD:
        return kind((k, v if v is None else copy.deepcopy(v, memo)) for k, v in value.items())
    if kind in (tuple, set) and all(type(v) in _PLAIN for v in value):
        return kind(value)
    return copy.deepcopy(value, memo)
