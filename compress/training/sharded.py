"""A model whose weights, gradients and optimizer state lie in parts in the processes that train it (torch's `fully_shard`).

A layer's weights are put together where it runs and let go behind it. While held-out data is looked at, and in what comes back,
weights are whole: training takes the memory, not they.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from compress.training.setup import Loop, refuse_apart

_LARGE = 1 << 16
"""Weights of a layer from which it is put together by itself; below that it waits for less than a message takes."""


def sharded(loop: Loop) -> Loop:
    """The loop with its student, the average and what the optimizer knows in parts, one for each of its processes.

    Raises:
        BadInput: entropy guidance, which looks at whole weights.
    """
    refuse_apart(loop.recipe)
    # Imported here: few trainings need it.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    named = {id(parameter): name for name, parameter in loop.student.named_parameters()}
    groups = [[named[id(parameter)] for parameter in group["params"]] for group in loop.optimizer.param_groups]
    mesh = init_device_mesh(loop.device.type, (loop.ranks.count,))
    for module in (loop.student, loop.average):
        if module is not None:
            # It takes weights in torch's own order only.
            module.to(memory_format=torch.contiguous_format)
            # The parts of a part come before it.
            for part in reversed(list(module.modules())):
                own = sum(parameter.numel() for parameter in part.parameters(recurse=False))
                if own >= _LARGE and part is not module:
                    fully_shard(part, mesh=mesh)
            fully_shard(module, mesh=mesh)
    parts = dict(loop.student.named_parameters())
    for group, names in zip(loop.optimizer.param_groups, groups, strict=True):
        group["params"] = [parts[name] for name in names]
    return replace(loop, layout=torch.contiguous_format, in_parts=True)


def whole(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the module's state as it is now; every process has to ask for it where the module is in parts."""
    state = module.state_dict()
    # clone: state_dict gives the weights that the next step changes.
    return {
        name: cast(Tensor, value.full_tensor()).detach().cpu() if hasattr(value, "full_tensor") else value.detach().clone()
        for name, value in state.items()
    }
