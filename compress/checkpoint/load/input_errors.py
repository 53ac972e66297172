"""Why a model does not run on some inputs, told by its layers instead of by torch: which one expects how many channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from compress.graph.trace.lines import silent
from compress.user.wording import many


def misfit(module: nn.Module, inputs: Sequence[Tensor]) -> str | None:
    """What the layer that fails expects, such as "the model's first layer (conv1) takes 1 channel"; None where none says.

    Args:
        module: any module, on the device of the inputs.
        inputs: one tensor per model input, batch first.
    """
    called: list[tuple[str, nn.Module, Tensor]] = []

    def note(name: str) -> Any:
        return lambda layer, args: called.append((name, layer, args[0])) if args and isinstance(args[0], Tensor) else None

    hooks = [m.register_forward_pre_hook(note(n)) for n, m in module.named_modules() if isinstance(m, _ConvNd | nn.Linear)]
    try:
        with torch.no_grad(), silent():
            module(*inputs)
    except Exception:  # whatever it is, the last layer that was called says enough or nothing
        return _expected(*called[-1], first=len(called) == 1) if called else None
    finally:
        for hook in hooks:
            hook.remove()
    return None


def _expected(name: str, layer: nn.Module, given: Tensor, first: bool) -> str | None:
    which = f"the model's first layer ({name})" if first else f"the model's layer {name}"
    if isinstance(layer, _ConvNd):
        axis = -1 - len(layer.kernel_size)
        if given.ndim >= -axis and given.shape[axis] != layer.in_channels:
            gets = "" if first else f" and gets {given.shape[axis]}"
            return f"{which} takes {many(layer.in_channels, 'channel')}{gets}"
    elif isinstance(layer, nn.Linear) and given.shape[-1:] != (layer.in_features,):
        return f"{which} takes {many(layer.in_features, 'value')} and gets {given.shape[-1] if given.ndim else 1}"
    return None


def channels_wanted(module: nn.Module) -> int | None:
    """The channels of the first convolution."""
    return next((m.in_channels for m in module.modules() if isinstance(m, _ConvNd)), None)


def by(shapes: Sequence[Sequence[int]]) -> str:
    """Shapes without the batch as a person reads them: `3x28x28`."""
    return ", ".join("x".join(map(str, shape)) for shape in shapes)
