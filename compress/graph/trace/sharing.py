"""A copy of a model that has modules of its own and shares every parameter and buffer with the model.

What tracing changes (modes, classes, names) belongs to modules; weights, which are nearly all of the memory, are only ever read:
a stage that changes them copies them first.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from types import CellType, FunctionType
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

_PLAIN = frozenset({type(None), bool, int, float, str, torch.dtype, torch.device, torch.Size})
_NO_TENSOR = _PLAIN | {dict, OrderedDict, set, tuple}  # said before Tensor is asked, which takes its time
# Copied key by key below, since their entries are the tensors and modules that must be shared or come from the memo.
_HELD = frozenset({"_parameters", "_buffers", "_modules"})
_TABLES = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, dict | set))
_OWN_WORDS = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__")
_SET_STATE = (nn.Module.__setstate__, _ConvNd.__setstate__)
Module = TypeVar("Module", bound=nn.Module)
_COMPILED = "_compiled_call_impl"  # torch.compile's; torch leaves it out of copies, too


def without_in_place(module: nn.Module) -> None:
    """Switch in-place operation of every layer off, so that values that somebody keeps are not overwritten. Changes the model."""
    for part in module.modules():
        if hasattr(part, "inplace"):
            part.__dict__["inplace"] = False


def sharing(model: Module, single: bool = True) -> Module:
    """The copy: parameters that are frozen stay so; in single precision, or (`single` False) in that of the model.

    Tensors that keep their type share their memory with the model's.
    """
    # deepcopy looks into memo first, so whatever is entered here is not copied: weights are shared, simple modules prefilled.
    memo: dict[int, Any] = {}
    every = _innermost_first(model)
    for m in every:
        for t in (*m._parameters.values(), *m._buffers.values()):
            # Exact types: a subclass of Tensor may have a way of its own to be copied.
            if type(t) in (nn.Parameter, Tensor):
                memo.setdefault(id(t), _shared(t, single))  # a tensor of several names stays one
        for t in loose_tensors(m).values():
            # A weight that a hook computes is an attribute with a history, which deepcopy refuses.
            if t.grad_fn is not None:
                memo.setdefault(id(t), t.detach())
    rebound = _rebound(every, memo)
    plainly = {kind: _copied_by_entries(kind) for kind in set(map(type, every))}
    simple = [m for m in every if plainly[type(m)]]
    for m in simple:
        # All shells before any is filled, because modules may refer to each other in any order.
        memo[id(m)] = type(m).__new__(type(m))
    # The innermost first: a class that copies itself, as GraphModule does, looks into the modules that it holds.
    for m in simple:
        own = memo[id(m)].__dict__
        own.update(vars(m))
        for name, value in vars(m).items():
            kind = type(value)
            if kind in _PLAIN:
                continue
            if name in _TABLES and not value:
                # Most entries of a module are empty, those of hooks above all, and need no deepcopy.
                own[name] = kind()
            elif name in _HELD:
                own[name] = kind((k, memo[id(v)] if id(v) in memo else copy.deepcopy(v, memo)) for k, v in value.items())
            elif kind in (tuple, set) and _PLAIN.issuperset(map(type, value)):
                own[name] = kind(value)
            else:
                own[name] = copy.deepcopy(value, memo)
        own.pop(_COMPILED, None)  # it was compiled for the original
    return _filled(copy.deepcopy(model, memo), rebound, memo)


def copied(model: Module) -> Module:
    """A copy that shares nothing with a model, its functions included."""
    memo: dict[int, Any] = {}
    rebound = _rebound(list(model.modules()), memo)
    return _filled(copy.deepcopy(model, memo), rebound, memo)


def _filled(made: Module, rebound: list[tuple[CellType, Any]], memo: dict[int, Any]) -> Module:
    for cell, content in rebound:
        cell.cell_contents = memo.get(id(content), content)
    return made


def _rebound(every: list[nn.Module], memo: dict[int, Any]) -> list[tuple[CellType, Any]]:
    """Functions that modules hold, such as hooks, and that reach the model by its name (`lambda m, x, y: self.f.update(a=y)`).

    deepcopy leaves functions as they are, and what they reach would be the model itself. In the memo they get cells of their own,
    to be filled with the copies of what is in these once that is known.
    """
    filled: list[tuple[CellType, Any]] = []
    for m in every:
        tables = [v for name, v in vars(m).items() if name in _TABLES and name not in _HELD and isinstance(v, dict) and v]
        for f in (*vars(m).values(), *(one for table in tables for one in cast("dict[Any, Any]", table).values())):
            if type(f) is FunctionType and f.__closure__ and id(f) not in memo:
                cells = tuple(CellType() for _ in f.__closure__)
                memo[id(f)] = again = FunctionType(f.__code__, f.__globals__, f.__name__, f.__defaults__, cells)
                again.__kwdefaults__, again.__qualname__ = f.__kwdefaults__, f.__qualname__
                filled += [(new, old.cell_contents) for new, old in zip(cells, f.__closure__, strict=True) if _is_full(old)]
    return filled


def _is_full(cell: CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # of a name that has not got its value
        return False
    return True


def loose_tensors(m: nn.Module) -> dict[str, Tensor]:
    """Tensors among the attributes of a module that are no parameters or buffers."""
    own = vars(m).items()
    return {name: value for name, value in own if type(value) not in _NO_TENSOR and isinstance(value, Tensor)}


def _innermost_first(model: nn.Module) -> list[nn.Module]:
    """All modules, each behind those that it holds: one that many hold, as an activation may be, before the first of them."""
    found: list[nn.Module] = []
    seen: set[int] = set()
    waiting = [(model, False)]
    while waiting:
        m, entered = waiting.pop()
        if entered:
            found.append(m)
        elif id(m) not in seen:
            seen.add(id(m))
            waiting.append((m, True))
            waiting += [(part, False) for part in m._modules.values() if part is not None]
    return found


def _shared(t: Any, single: bool) -> Tensor:
    # Whole numbers (BatchNorm's num_batches_tracked) keep their type.
    real = t.is_floating_point()
    own = t.detach().float() if single and real and t.dtype is not torch.float32 else t
    # Both share memory; whether it is frozen is then set anew.
    return nn.Parameter(own, real and t.requires_grad) if type(t) is nn.Parameter else own.detach()


def _copied_by_entries(kind: Any) -> bool:
    """Whether to copy a module of this class is to copy its entries, as for nn.Module: no word of its own about copying."""
    # A class that says how it is copied may rely on it, so deepcopy has to ask it.
    silent = all(getattr(kind, word, None) == getattr(nn.Module, word, None) for word in _OWN_WORDS)
    return silent and kind.__setstate__ in _SET_STATE
