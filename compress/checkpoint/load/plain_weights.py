"""Layers whose weights are not there yet, or are computed in every call, get plain ones: the same function in eval mode.

lazy layers                         sizes are those of the weights
parametrizations, weight_norm,      the weight that they compute now
spectral_norm, masks of pruning
"""

# pyright: reportPrivateUsage=false
# Hooks, and the parameters a lazy layer is waiting for, are only in a module's own dictionaries.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _LazyNormBase
from torch.nn.modules.conv import _LazyConvXdMixin
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from compress.errors import BadInput

_SHOWN = 3


def materialize(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give lazy layers the sizes that their weights have, as their first call would; changes the module."""
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn, and the file's replace them
        for path, m in list(module.named_modules()):
            if (
                _is_lazy(m)
                and (example := _example(m, {k: weights.get(f"{path}.{k}".lstrip(".")) for k in _held(m)})) is not None
            ):
                # torch's own way: sizes, fresh parameters, and the class that the layer becomes.
                cast(Any, m)._infer_parameters(m, (example,))


def refuse_lazy(module: nn.Module, where: str) -> None:
    """Refuse layers whose sizes nothing has told.

    Raises:
        BadInput: names the first.
    """
    if (found := next(((name, m) for name, m in module.named_modules() if _is_lazy(m)), None)) is not None:
        raise BadInput(
            f"{where} has a layer whose sizes are not known yet ({found[0]}, {type(found[1]).__name__}). Call the model once on "
            "an input, then save it."
        )


def _is_lazy(m: nn.Module) -> bool:
    return isinstance(m, LazyModuleMixin) and cast(Any, m).has_uninitialized_params()


def _held(m: nn.Module) -> list[str]:
    return [*m._parameters, *m._buffers]


def _example(m: Any, tensors: Mapping[str, Tensor | None]) -> Tensor | None:
    """An input of the channels that the layer's tensors are made for; None where they do not tell."""
    weight = tensors.get("weight")
    if isinstance(m, _LazyNormBase):
        of = weight if weight is not None else tensors.get("running_mean")
        return None if of is None or of.ndim != 1 else torch.empty(1, len(of))
    if weight is None or weight.ndim < 2:
        return None
    if isinstance(m, nn.LazyLinear):
        return torch.empty(1, weight.shape[1])
    if isinstance(m, _LazyConvXdMixin):
        channels = weight.shape[0] if cast(Any, m).transposed else weight.shape[1] * cast(Any, m).groups
        return torch.empty(1, channels, *[1] * (weight.ndim - 2))
    return None


def make_plain(module: nn.Module) -> list[str]:
    """Put what is computed from other tensors in the place of a weight, and say of which layers; changes the module.

    Args:
        module: in eval mode, where all of these compute the same in every call.
    """
    made: dict[str, list[str]] = {}
    for path, m in list(module.named_modules()):
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
    for name, parts in list(cast(nn.ModuleDict, m.parametrizations).items()):
        kinds += [type(part).__name__.lstrip("_") for part in cast(nn.ModuleList, parts)]
        parametrize.remove_parametrizations(m, name, leave_parametrized=True)
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
