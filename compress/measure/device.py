"""Models on devices, without touching the model that was given."""

from __future__ import annotations

import copy
import itertools
from typing import TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


def placed(module: M, device: torch.device | str) -> M:
    """The module itself where all of it is on the device already, else a copy there: `Module.to` would move the caller's own."""
    device = torch.device(device)
    everything = itertools.chain(module.parameters(), module.buffers())
    there = all(t.device.type == device.type and device.index in (None, t.device.index) for t in everything)
    return module if there else copy.deepcopy(module).to(device)
