"""What is no plain module: wrappers that come off, and kinds of module that no graph of layers can be made of."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from compress.errors import BadInput, UnsupportedModel
from compress.graph.names import submodules

_COMPILED = "OptimizedModule"  # of torch.compile, whose module is slow to import


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside of torch.compile's; any other as it is.

    Raises:
        UnsupportedModel: TorchScript, or a quantized layer.
        BadInput: weights without data.
    """
    if type(model).__name__ == _COMPILED:
        model = cast(nn.Module, cast(Any, model)._orig_mod)
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModel("The model is TorchScript, which can no longer be changed. Give the module it was made from.")
    every = submodules(model)
    quantized = {kind for kind in {type(part) for _, part in every} if ".quantized" in kind.__module__}
    for path, part in every:
        if type(part) in quantized:
            raise UnsupportedModel(f"The model is quantized ({path or 'all of it'}). Give the module as it was before.")
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.is_meta:
                where = f"{path}.{name}" if path else name
                raise BadInput(f"The model has weights without data ({where} is on the meta device). Load its weights first.")
    return model
