"""Lazy layers, whose weights are not there yet, get the sizes of the weights that a file has for them."""

# pyright: reportPrivateUsage=false
# The parameters a lazy layer is waiting for are only in a module's own dictionaries.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _LazyNormBase
from torch.nn.modules.conv import _LazyConvXdMixin
from torch.nn.modules.lazy import LazyModuleMixin

from compress.errors import BadInput


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
