"""Activations that are linearized gradually while the model trains, instead of at once.

    y = (1 - t) act(x) + t affine(x)        t = (1 - cos(pi s / S)) / 2 up to step S, then 1; S = 3/4 of all steps

Training starts from the model that it was and ends with the affine functions alone in place, at a learning rate that is not yet
zero. What
is measured on the way is what would be left if it ended there: t = 1.
"""

from __future__ import annotations

import copy
import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.graph import operations
from compress.graph.channel_affine import ChannelAffine
from compress.graph.trace.sharing import without_in_place

_RAMP = 0.75  # share of the steps over which t rises


class Blend(nn.Module):
    """An activation on its way to an affine function."""

    t: Tensor

    def __init__(self, act: nn.Module, affine: ChannelAffine):
        super().__init__()
        self.act, self.affine = act, affine
        # A buffer and no number: it moves with the model and is averaged with it.
        self.register_buffer("t", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return (1 - self.t) * self.act(x) + self.t * self.affine(x)

    def advance(self, share: float) -> None:
        """Be as far as training is, `share` in [0, 1]."""
        self.t.fill_(0.5 - 0.5 * math.cos(math.pi * min(share / _RAMP, 1.0)))  # the docstring's t


def advance(module: nn.Module, share: float) -> None:
    """Tell everything in a model that is on its way which share of the training is done."""
    for part in module.modules():
        if isinstance(part, Blend):
            part.advance(share)


def blended(module: GraphModule, dense: GraphModule) -> GraphModule:
    """A copy in which every affine that stands for an activation of the dense model begins as that activation.

    A PReLU whose slopes no longer fit, since channels are gone, is left an affine function.
    """
    module = copy.deepcopy(module)
    before: dict[str, nn.Module] = dict(dense.named_modules())
    for path, affine in list(module.named_modules()):
        act = before.get(path)
        if type(affine) is ChannelAffine and act is not None and type(act) in operations.ACTIVATIONS and _fits(act, affine):
            act = copy.deepcopy(act).requires_grad_(False)
            without_in_place(act)  # its affine function reads the same input
            _put(module, path, Blend(act, affine).to(affine.slope.device))
    return module


def settled(module: GraphModule) -> GraphModule:
    """The same model with the affine functions alone in place; changes it."""
    for path, part in list(module.named_modules()):
        if isinstance(part, Blend):
            _put(module, path, part.affine)
    return module


def _fits(act: nn.Module, affine: ChannelAffine) -> bool:
    return all(p.numel() in (1, affine.channels) for p in act.parameters())  # one slope for all channels fits any number of them


def _put(module: GraphModule, path: str, part: nn.Module) -> None:
    owner, _, name = path.rpartition(".")
    setattr(cast(nn.Module, module.get_submodule(owner)), name, part)
