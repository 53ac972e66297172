"""Weights that are held at zero while the rest is trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils import parametrize


class _Masked(nn.Module):
    """weight * mask, so that neither momentum nor decay brings a masked weight back."""

    mask: Tensor

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def masked(module: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """A copy whose named layers have weights of which only the unmasked part is seen and trained.

    Args:
        module: any module.
        masks: by path of the layer, of the weight's shape; False where the weight is held at zero.
    """
    new = copy.deepcopy(module)
    for path, mask in masks.items():
        layer = new.get_submodule(path)
        parametrize.register_parametrization(layer, "weight", _Masked(mask.to(next(layer.parameters()).device)))
    return new


def unmasked(module: nn.Module, like: nn.Module) -> nn.Module:
    """The weights of a masked model, zeros included, in a copy of the model that it was made from."""
    bare, plain = copy.deepcopy(module), copy.deepcopy(like)
    for part in list(bare.modules()):
        if parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)
    plain.load_state_dict(bare.state_dict())
    return plain.eval()
