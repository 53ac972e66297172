"""Weights that are computed in every call become plain ones of the same values: the same function in eval mode.

Parametrizations, weight_norm and spectral_norm, masks of pruning.
"""

# pyright: reportPrivateUsage=false
# Hooks are only in a module's own dictionaries.

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from compress.graph.names import submodules

_SHOWN = 3


def make_plain(module: nn.Module) -> list[str]:
    """Put what is computed from other tensors in the place of a weight, and say of which layers; changes the module.

    Args:
        module: in eval mode, where all of these compute the same in every call.
    """
    made: dict[str, list[str]] = {}
    for path, m in submodules(module):
        if not m._forward_pre_hooks and "parametrizations" not in m._modules:  # said before torch is asked, which takes its time
            continue
        frozen = not any(p.requires_grad for p in m.parameters())
        kinds = [*_parametrized(m), *_hooked(m)]
        if kinds and frozen:
            m.requires_grad_(False)
        for kind in kinds:
            made.setdefault(kind, []).append(path)
    notes: list[str] = []
    for kind, paths in made.items():
        paths = list(dict.fromkeys(paths))
        more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
        masked = " Fine-tuning does not keep the zeros of the masks." if kind == _MASKS else ""
        notes.append(f"{kind} of {', '.join(paths[:_SHOWN])}{more} became plain weights of the same values.{masked}")
    return notes


_MASKS = "The pruning masks"


def _parametrized(m: nn.Module) -> list[str]:
    if not parametrize.is_parametrized(m):
        return []
    kinds: list[str] = []
    plain: dict[str, Tensor] = {}
    for name, parts in cast(nn.ModuleDict, m.parametrizations).items():
        kinds += [type(part).__name__.lstrip("_") for part in cast(nn.ModuleList, parts)]
        with torch.no_grad():
            value = cast(Tensor, getattr(m, name)).clone()
        computed_of = [*parts.parameters(recurse=False)]  # none: a buffer
        plain[name] = nn.Parameter(value, any(p.requires_grad for p in computed_of)) if computed_of else value
    # torch's own way back deletes the property from the class, which copies of the module share, and writes into the tensors.
    m.__class__ = parametrize.type_before_parametrizations(m)
    del m._modules["parametrizations"]
    for name, value in plain.items():
        m.register_parameter(name, value) if isinstance(value, nn.Parameter) else m.register_buffer(name, value)
    return kinds


def _hooked(m: nn.Module) -> list[str]:
    """The older kind: a hook that runs before forward and sets the weight."""
    kinds: list[str] = []
    for hook in list(m._forward_pre_hooks.values()):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(m, cast(Any, hook)._tensor_name)
            kinds.append(_MASKS)
        elif isinstance(hook, WeightNorm):
            remove_weight_norm(m, hook.name)
            kinds.append("WeightNorm")
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(m, hook.name)
            kinds.append("SpectralNorm")
    return kinds
