"""Weights that are held at zero while the rest is trained."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Masks = Mapping[str, Tensor]
"""By path of the layer, of the weight's shape; False where the weight is held at zero."""
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


class _Masked(nn.Module):
    """weight * mask, so that neither momentum nor decay brings a masked weight back."""

    mask: Tensor

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def prunable(module: nn.Module) -> dict[str, Tensor]:
    """A mask of nothing but True for each convolution and linear layer that is called by itself, by path."""
    layers = ((path, part) for path, part in module.named_modules() if isinstance(part, _LAYERS))
    return {path: torch.ones_like(part.weight, dtype=torch.bool, device="cpu") for path, part in layers}


def masked(module: nn.Module, masks: Masks) -> nn.Module:
    """A copy whose named layers have weights of which only the unmasked part is seen and trained."""
    new = copy.deepcopy(module)
    for path, mask in masks.items():
        layer = new.get_submodule(path)
        parametrize.register_parametrization(layer, "weight", _Masked(mask.to(next(layer.parameters()).device)))
    return new


def unmasked(module: nn.Module, like: nn.Module) -> nn.Module:
    """The weights of a masked model, zeros included, in a copy of the model that it was made from."""
    plain = copy.deepcopy(like)
    state = dict[str, Tensor]()
    for name in plain.state_dict():
        path, _, own = name.rpartition(".")
        # Not by remove_parametrizations: it takes the property from the class, which copies of a module share.
        # The masked weight, computed; not the original that still holds values under the mask.
        state[name] = getattr(module.get_submodule(path), own)
    plain.load_state_dict(state)
    return plain.eval()
