"""A smaller model for any choice of channel counts, in milliseconds: everything that needs images was done once.

    which channels     those that greedy elimination on the moments keeps longest (`entropy.obs`): one sweep per group serves
                       every count
    what stays         each layer that lost inputs is refitted to its own dense outputs, from the moments of its dense inputs:
                       W = C_yx,S (C_SS + r I)^{-1}        S the columns that stay
    errors that add up in one run over a few images, layer by layer, each output channel gets the mean M and the deviation S that
                       it has in the dense model:  y <- (y - mean) S / deviation + M,  written into weights and bias

Norms are folded, so that a layer and its norm are refitted as one. This is the refit of AMC (on inputs of the original net),
which knows 1 x 1 convolutions only, for any convolution, with an intercept, and for residual streams. It is what an episode is
judged by; what a search has found is then carried out with the better, sequential refit. Without the last step the choices of a
strong compression would all be at chance, and nothing could be learned from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.artifact import Artifact
from compress.edits import Keep
from compress.entropy.obs import Sweep
from compress.entropy.ridge import solve, with_ridge
from compress.graph.channels.solve import Channels
from compress.graph.channels.solve import solve as channels_of
from compress.graph.merge.batch_norm import fold
from compress.graph.surgery import remove
from compress.refit.walk import write
from compress.statistics.collect import Statistics
from compress.statistics.layers import Layer, as_matrix, from_matrix, layers

_RIDGE = 1e-3  # as everywhere
_TINY = 1e-6  # deviation of a channel that has none


@dataclass(frozen=True)
class Consumer:
    """A layer that can lose inputs: its moments, centered, float64 on the CPU.

    Attributes:
        layer: geometry.
        xx, xy: covariances of its input columns, and of these with its outputs.
        mean: of the input columns.
        offset: mean of its outputs.
    """

    layer: Layer
    xx: Tensor
    xy: Tensor
    mean: Tensor
    offset: Tensor


@dataclass(frozen=True)
class Shrinker:
    """The dense model with folded norms, and what was learned from the images.

    Attributes:
        images: a batch of model inputs.
        spread: mean and deviation of the outputs of each layer of the dense model on them.
    """

    module: GraphModule
    channels: Channels
    sweeps: Mapping[str, Sweep]
    consumers: tuple[Consumer, ...]
    images: tuple[Tensor, ...]
    spread: Mapping[str, tuple[Tensor, Tensor]]

    def __call__(self, counts: Mapping[str, int]) -> GraphModule:
        """A copy in which each named group keeps so many channels, its consumers refitted and all layers levelled.

        Raises:
            KeyError: a group that no sweep was made for.
        """
        small, stays = self.refitted(counts)

        def level(one: Layer, y: Tensor) -> Tensor:
            return _levelled(
                small.get_submodule(one.path), one, y, self.spread[one.path], self._left(one.path, 1 - one.reads, stays)
            )

        _watch(small, self.images, level)
        return small

    def refitted(self, counts: Mapping[str, int]) -> tuple[GraphModule, Tensor]:
        """The same before any image is looked at, and which classes of channels stay."""
        edits: list[Keep] = []
        for name, count in counts.items():
            if count < (whole := self.channels.group(name).channels):
                edits.append(Keep(name, whole, tuple(self.sweeps[name].kept(count))))
        small = remove.keep(self.module, self.channels, edits)
        stays = remove.staying(self.channels, edits)
        for consumer in self.consumers:
            self._refit(small, consumer, stays)
        return small.eval(), stays

    def _refit(self, small: GraphModule, consumer: Consumer, stays: Tensor) -> None:
        one = consumer.layer
        inputs, outputs = (self._left(one.path, dim, stays) for dim in (one.reads, 1 - one.reads))
        # It lost no input: its weights still give what they gave.
        if len(inputs) * one.window.taps == one.inputs:
            return
        columns = (inputs[:, None] * one.window.taps + torch.arange(one.window.taps)).flatten()
        xy = consumer.xy[columns][:, outputs]
        weight = solve(with_ridge(consumer.xx[columns][:, columns], consumer.mean[columns], _RIDGE), xy).mT
        # The docstring's intercept, with the mean of the columns that stay.
        write(small.get_submodule(one.path), weight.float(), (consumer.offset[outputs] - weight @ consumer.mean[columns]).float())

    def _left(self, path: str, dim: int, stays: Tensor) -> Tensor:
        """Positions along an axis of a layer's weight that stay."""
        weight = f"{path}.weight"
        found = self.channels.axes.get((weight, dim))
        if found is None:
            return torch.arange(self.module.get_parameter(weight).shape[dim])
        return torch.nonzero(stays[found[1]])[:, 0]


def shrinker(
    artifact: Artifact,
    found: Statistics,
    sweeps: Mapping[str, Sweep],
    images: tuple[Tensor, ...],
    device: torch.device,
) -> Shrinker:
    """Prepare a dense model.

    Args:
        artifact: the dense model.
        found: moments of the consumers of its groups.
        sweeps: by name of the group.
        images: a batch of model inputs, on the device, for the means and deviations.
        device: where the smaller models are to be.
    """
    module = fold(artifact.module).to(device).requires_grad_(False)
    consumers = tuple(
        _consumer(module, one, found) for path, one in layers(module).items() if path in found.moments and one.groups == 1
    )
    spread: dict[str, tuple[Tensor, Tensor]] = {}

    def note(one: Layer, y: Tensor) -> Tensor:
        spread.setdefault(one.path, _spread(one, y))
        return y

    _watch(module, images, note)
    return Shrinker(module, channels_of(module, artifact.inputs), sweeps, consumers, images, spread)


def _watch(module: GraphModule, images: tuple[Tensor, ...], call: Callable[[Layer, Tensor], Tensor]) -> None:
    """Run a model once; the output of every layer's call becomes what `call` makes of it."""

    def hook(one: Layer) -> Callable[..., Tensor]:
        # What a hook returns takes the place of the output, so later layers see the levelled one.
        return lambda part, inputs, y: call(one, y)

    # A layer that is called several times has one bias for all of its calls; it is left as it is.
    once = [one for one in layers(module).values() if len(one.nodes) == 1]
    handles = [module.get_submodule(one.path).register_forward_hook(hook(one)) for one in once]
    try:
        with torch.no_grad():
            module(*images)
    finally:
        for handle in handles:
            handle.remove()


def _spread(one: Layer, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each output channel."""
    rows = y.movedim(-1 if one.linear else 1, 0).flatten(1)
    # correction=0: matched deviations need no unbiased estimate, and one row would divide by zero.
    return rows.mean(1), rows.std(1, correction=0)


def _levelled(part: Any, one: Layer, y: Tensor, wanted: tuple[Tensor, Tensor], outputs: Tensor) -> Tensor:
    """The output with the wanted means and deviations, and the layer changed so that it gives it."""
    (mean, deviation), (to_mean, to_deviation) = _spread(one, y), (t[outputs.to(y.device)] for t in wanted)
    # A channel without deviation cannot be stretched.
    scale = torch.where(deviation > _TINY, to_deviation / deviation.clamp_min(_TINY), 1.0)
    with torch.no_grad():
        part.weight.copy_(from_matrix(part, as_matrix(part) * scale[:, None]))
        bias = torch.zeros_like(mean) if part.bias is None else part.bias
        part.bias = nn.Parameter((bias - mean) * scale + to_mean, requires_grad=False)
    shape = [-1 if d == (y.ndim - 1 if one.linear else 1) else 1 for d in range(y.ndim)]
    # The same as the layer gives from now on, without running it again.
    return (y - mean.view(shape)) * scale.view(shape) + to_mean.view(shape)


def _consumer(module: GraphModule, one: Layer, found: Statistics) -> Consumer:
    part = module.get_submodule(one.path)
    centered = found.moments[one.path].centered_linear(as_matrix(part))
    bias = part.bias.detach().cpu().double() if isinstance(part.bias, Tensor) else torch.zeros(one.outputs, dtype=torch.float64)
    return Consumer(one, centered.xx[0], centered.xy[0], centered.mean_x[0], centered.mean_y[0] + bias)
