"""From statistics to channels: the loss of every group, how many of its channels stay, and which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule

from compress.entropy import obs, quadratic, regression, swaps
from compress.entropy.narrowed import WIDEST, narrowed, taps
from compress.entropy.obs import Sweep
from compress.entropy.quadratic import Quadratic
from compress.graph.channels.solve import Group, Member
from compress.ranks import ALONE, Ranks
from compress.ranks.own_threads import for_columns, threads
from compress.statistics.collect import Statistics
from compress.statistics.consumers import judged, maker, measured
from compress.statistics.layers import Layer, as_matrix, layers
from compress.user import memory

_WIDE = 1500  # columns beyond which the entropic path starts from what a sweep leaves, twice as many as wanted
_FLOOR = 1e-2  # of the mean of G's diagonal, in every direction: few gradients leave directions that look free


@dataclass(frozen=True)
class Losses:
    """Quadratic losses of the groups, built when they are needed: one group's matrices at a time."""

    module: GraphModule
    statistics: Statistics

    def of(self, group: Group) -> list[Quadratic]:
        """A quadratic for each regression of the consumers that are understood; none where there is no such consumer.

        Of channels that no layer reads, what they are worth to whatever comes behind the layer that makes them.
        """
        known = layers(self.module)
        memory.trim()  # the holes that the group before this one has left may be as large as what comes
        if (made := maker(group, known)) is not None:
            return [self._made(group, made, known[made.module])]
        return [form for member in measured(group, known) for form in self._each(group, member, known[member.module])]

    def work(self, group: Group) -> float:
        """How long a group takes beside another: the cubes of its consumers' columns."""
        known = layers(self.module)
        return sum(float(known[m.module].inputs) ** 3 for m in judged(group, known))

    def threads(self, group: Group) -> AbstractContextManager[None]:
        """As many threads as its matrices are worth."""
        known = layers(self.module)
        return threads(for_columns(max((known[m.module].inputs for m in judged(group, known)), default=0)))

    def _made(self, group: Group, member: Member, one: Layer) -> Quadratic:
        """With second moments E y y^T of the outputs that go, and G of their gradients."""
        layer: Any = self.module.get_submodule(one.path)
        found = self.statistics.moments[one.path].centered_linear(as_matrix(layer))
        # Not centered: nothing that is fitted stands in for the mean of what is multiplied.
        mean = found.mean_y[0] + (0.0 if layer.bias is None else layer.bias.detach().cpu().double())
        return quadratic.alone(
            self.statistics.fisher[one.path] * (found.yy[0] + torch.outer(mean, mean)), member.index, group.channels
        )

    def _each(self, group: Group, member: Member, one: Layer) -> list[Quadratic]:
        """One per group of the layer."""
        weight = as_matrix(self.module.get_submodule(one.path))
        found, owner = self.statistics.moments[one.path], member.index.repeat_interleave(one.window.taps)
        if found.few and one.inputs > WIDEST and taps(owner, group.channels):
            moments, owner = narrowed(lambda: (rows.cpu() for rows, _ in found.parts()), weight.cpu(), owner, group.channels)
        else:
            moments = found.centered_linear(weight)
        weighting = self.statistics.fisher[one.path].clone()
        weighting.diagonal().add_(_FLOOR * float(weighting.diagonal().mean()))
        size = len(weighting) // one.groups
        return [
            quadratic.quadratic(part, weighting[g * size :, g * size :][:size, :size], owner, group.channels)
            for g, part in enumerate(moments.parts())
        ]


def sweeps(losses: Losses, groups: Sequence[Group], progress: Callable[[float], None], ranks: Ranks = ALONE) -> dict[str, Sweep]:
    """Loss curve and order of elimination of every group that has a measured consumer."""

    def sweep(group: Group) -> Sweep | None:
        with losses.threads(group):
            forms = losses.of(group)
            return obs.eliminate(forms) if forms else None

    found = ranks.each(groups, sweep, losses.work, progress)
    return {group.name: one for group, one in zip(groups, found, strict=True) if one is not None}


def entropic(forms: Sequence[Quadratic], sweep: Sweep, keep: int, exchange: bool = True) -> list[int]:
    """Channels by entropic regression. With `exchange` the path is finished by swaps, and whichever is better of it and the
    greedy sweep, finished alike, is taken: the path alone loses to the sweep on most layers.
    """
    wide = max(form.a.shape[0] for form in forms) > _WIDE
    among = sweep.kept(min(2 * keep, forms[0].channels)) if wide else None
    path = sorted(regression.select(forms, keep, among).kept)
    if not exchange:
        return path
    candidates = [swaps.improve(forms, path), swaps.improve(forms, sweep.kept(keep))]
    return min(candidates, key=lambda kept: quadratic.loss(forms, kept))
