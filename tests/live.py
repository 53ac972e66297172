"""A model in memory, samples for it, and everything that a caller could notice of a change to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """Batch norms, a dropout, a parameter that is frozen, and a buffer."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 12, 3, padding=1)
        self.norm = nn.BatchNorm2d(12)
        self.second = nn.Conv2d(12, 16, 3, padding=1)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.head(self.drop(torch.relu(self.second(x)).mean((2, 3))))


def net(seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return Small().eval()


def samples(count: int = 80, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, 8, 8, generator=generator), torch.arange(count) % 4


def everything(model: nn.Module) -> dict[str, Any]:
    """What a caller could notice of a change."""
    return {
        "weights": {name: value.clone() for name, value in model.state_dict().items()},
        "identity": {name: id(value) for name, value in (*model.named_parameters(), *model.named_buffers())},
        "modules": {name: id(part) for name, part in model.named_modules()},
        "modes": {name: part.training for name, part in model.named_modules()},
        "trainable": {name: p.requires_grad for name, p in model.named_parameters()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "hooks": {name: [*part._forward_hooks, *part._backward_hooks] for name, part in model.named_modules()},
        "attributes": {name: sorted(vars(part)) for name, part in model.named_modules()},
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other
