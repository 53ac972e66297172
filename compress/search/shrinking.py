"""A smaller model for any choice of channel counts, in milliseconds: everything that needs images was done once.

    which channels     those that greedy elimination on the moments keeps longest (`entropy.obs`): one sweep per group serves
                       every count
    what stays         each layer that lost inputs is refitted to its own dense outputs, from the moments of its dense inputs:
                       W = C_yx,S (C_SS + r I)^{-1}        S the columns that stay

Norms are folded, so that a layer and its norm are refitted as one. This is the refit of AMC (on inputs of the original net),
which knows 1 x 1 convolutions only, for any convolution, with an intercept, and for residual streams. It is what an episode is
judged by; what a search has found is then carried out with the better, sequential refit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from compress.artifact import Artifact
from compress.entropy.obs import Sweep
from compress.entropy.refit import solve, with_ridge
from compress.graph import surgery
from compress.graph.channels import Channels
from compress.graph.channels import solve as channels_of
from compress.graph.fold import fold
from compress.plan import Keep
from compress.statistics.collect import Statistics
from compress.statistics.layers import Layer, as_matrix, layers
from compress.statistics.refitting import write

_RIDGE = 1e-3  # as everywhere


@dataclass(frozen=True)
class Reader:
    """A layer that can lose inputs: its moments, centred, float64 on the CPU.

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
    """The dense model with folded norms, and what was learned from the images."""

    module: GraphModule
    channels: Channels
    sweeps: Mapping[str, Sweep]
    readers: tuple[Reader, ...]

    def __call__(self, counts: Mapping[str, int]) -> GraphModule:
        """A copy in which each named group keeps so many channels, its readers refitted.

        Raises:
            KeyError: a group that no sweep was made for.
        """
        edits = []
        for name, count in counts.items():
            if count < (whole := self.channels.group(name).channels):
                edits.append(Keep(name, whole, tuple(self.sweeps[name].kept(count))))
        small = surgery.keep(self.module, self.channels, edits)
        stays = surgery.staying(self.channels, edits)
        for reader in self.readers:
            self._refit(small, reader, stays)
        return small.eval()

    def _refit(self, small: GraphModule, reader: Reader, stays: Tensor) -> None:
        one = reader.layer
        inputs, outputs = (self._left(one.path, dim, stays) for dim in (one.reads, 1 - one.reads))
        if len(inputs) * one.window.taps == one.inputs:
            return
        columns = (inputs[:, None] * one.window.taps + torch.arange(one.window.taps)).flatten()
        xy = reader.xy[columns][:, outputs]
        weight = solve(with_ridge(reader.xx[columns][:, columns], _RIDGE), xy).mT
        write(small.get_submodule(one.path), weight.float(), (reader.offset[outputs] - weight @ reader.mean[columns]).float())

    def _left(self, path: str, dim: int, stays: Tensor) -> Tensor:
        """Positions along an axis of a layer's weight that stay."""
        weight = f"{path}.weight"
        found = self.channels.axes.get((weight, dim))
        if found is None:
            return torch.arange(self.module.get_parameter(weight).shape[dim])
        return torch.nonzero(stays[found[1]])[:, 0]


def shrinker(artifact: Artifact, found: Statistics, sweeps: Mapping[str, Sweep], device: torch.device) -> Shrinker:
    """Prepare a dense model.

    Args:
        artifact: the dense model.
        found: moments of the readers of its groups.
        sweeps: by name of the group.
        device: where the smaller models are to be.
    """
    module = fold(artifact.module).to(device).requires_grad_(False)
    readers = tuple(_reader(module, one, found) for path, one in layers(module).items() if path in found.moments)
    return Shrinker(module, channels_of(module, artifact.inputs), sweeps, readers)


def _reader(module: GraphModule, one: Layer, found: Statistics) -> Reader:
    part = module.get_submodule(one.path)
    centred = found.moments[one.path].centred_linear(as_matrix(part))
    bias = part.bias.detach().cpu().double() if isinstance(part.bias, Tensor) else torch.zeros(one.outputs, dtype=torch.float64)
    return Reader(one, centred.xx[0], centred.xy[0], centred.mean_x[0], centred.mean_y[0] + bias)
