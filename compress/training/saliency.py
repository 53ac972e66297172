"""What single weights are worth to a training: learned over epochs, or seen in the first batches.

    learned   S_w = |w(end of epoch) - w(start of epoch)| + alpha |mean over the epoch's batches of g_w|     of the last epoch
    snip      S_w = |mean over batches of g_w|                                                             of the untrained net
    random    drawn
    g_w = dL/dc at c = 1 of a gate c on the weight = w dL/dw         alpha: learning rate

Sources: learned, "weight sensitivity" of an ICLR 2023 Tiny Paper, equation (1); its text leaves open what the gate's gradient is
averaged over, whether scores add up over epochs and how much is pruned: the above is our reading, the equation taken literally.
snip: Lee, Ajanthan, Torr, "SNIP: Single-shot Network Pruning based on Connection Sensitivity", ICLR 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.stage import Context
from compress.training.masks import prunable
from compress.training.setup import FLAT
from compress.training.together import How, train_together

Scores = dict[str, Tensor]
"""By path of the layer, of its weight's shape, on the CPU."""

_SNIP_BATCHES = 100


class _Gates:
    """Sums w dL/dw over batches, and how far the weights of an epoch went."""

    def __init__(self, module: nn.Module):
        self.paths = list(prunable(module))
        self.sums, self.steps = dict[str, Tensor](), 0
        self.start = self.moved = dict[str, Tensor]()
        self.gates = dict[str, Tensor]()

    def step(self, student: nn.Module) -> None:
        for path in self.paths:
            weight = _weight(student, path)
            if weight.grad is not None:
                product = weight.detach() * weight.grad
                # Signed, as it is the mean that the equation takes; the absolute value comes last.
                self.sums[path] = self.sums[path] + product if path in self.sums else product
        self.steps += 1

    def epoch(self, student: nn.Module) -> None:
        now = {path: _weight(student, path).detach().clone() for path in self.paths}
        # There is no epoch before the first call, which only sets the start.
        if self.start:
            self.moved = {path: (now[path] - self.start[path]).abs().cpu() for path in self.paths}
            zero = {path: torch.zeros_like(value) for path, value in now.items()}
            self.gates = {path: (self.sums.get(path, zero[path]) / max(self.steps, 1)).abs().cpu() for path in self.paths}
        self.start, self.sums, self.steps = now, {}, 0


def learned(module: GraphModule, context: Context, how: How) -> Scores:
    """Sensitivity after a whole training of the untrained `module`, as the recipe says, without a teacher."""
    watching = _Gates(module)
    train_together(module, context, replace(how, observer=watching))
    return {path: watching.moved[path] + (context.recipe.lr or FLAT) * watching.gates[path] for path in watching.paths}


def snip(module: GraphModule, context: Context, how: How) -> Scores:
    """Connection sensitivity of the untrained `module` over its first batches, before any step."""
    recipe = context.recipe
    per_epoch = max(1, len(context.data.train) // recipe.batch_size)
    # A rate of next to nothing: the gradients are those of the untrained weights.
    few = recipe.model_copy(update={"epochs": min(_SNIP_BATCHES, per_epoch) / per_epoch, "lr": 1e-12, "weight_decay": 0.0})
    watching = _Gates(module)
    train_together(module, replace(context, recipe=few), replace(how, observer=watching))
    return watching.gates


def drawn(module: GraphModule, context: Context, how: How) -> Scores:
    """Uniform numbers, by the recipe's seed."""
    generator = torch.Generator().manual_seed(context.recipe.seed)
    return {path: torch.rand(mask.shape, generator=generator) for path, mask in prunable(module).items()}


CRITERIA: dict[str, Callable[[GraphModule, Context, How], Scores]] = {"learned": learned, "snip": snip, "random": drawn}
"""Ways to judge a net that is about to be trained."""


def _weight(module: nn.Module, path: str) -> nn.Parameter:
    return cast(nn.Parameter, module.get_submodule(path).weight)
