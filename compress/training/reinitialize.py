"""An architecture with fresh weights, as if it had just been built."""

from __future__ import annotations

import copy

import torch
from torch import nn

NORMAL_STD = 0.02  # tokens, position embeddings and the like: what vision transformers use


def reinitialized(module: nn.Module, seed: int) -> tuple[nn.Module, str]:
    """A copy with weights drawn anew by each layer's own `reset_parameters`, and one sentence about the rest.

    Parameters of modules without a reset (tokens, position embeddings, layer scale) are drawn from a normal distribution of
    std 0.02 where they have more than one axis longer than 1, and set to their mean otherwise, so that no trained value is left
    but its scale. Running statistics start anew; other buffers are constants of the architecture and stay.
    """
    # What was frozen was trained before; drawn weights are not.
    new = copy.deepcopy(module)
    for parameter in new.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    rest: list[str] = []
    # The caller's random state stays as it was.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, part in new.named_modules():
            # nn.MultiheadAttention and transformers have the underscore
            reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
            if callable(reset):
                reset()
                continue
            for own, parameter in part.named_parameters(recurse=False):
                rest.append(f"{name}.{own}".lstrip("."))
                # Layer scales and the like have one axis: noise in their place would not train.
                if sum(length > 1 for length in parameter.shape) > 1:
                    parameter.normal_(0, NORMAL_STD)
                else:
                    parameter.fill_(float(parameter.mean()))
    said = f"All weights were drawn anew with seed {seed}"
    if rest:
        more = f" and {len(rest) - 3} more" if len(rest) > 3 else ""
        said += f"; {', '.join(rest[:3])}{more} have no reset of their own and were drawn from N(0, {NORMAL_STD}^2) or levelled"
    return new, said + "."
