"""How much of a model the removal of channels can reach, before anything is run: what can go, and what stands in the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compress.artifact import Artifact
from compress.graph.channels.solve import Group
from compress.selection import budget
from compress.statistics.consumers import judged
from compress.statistics.layers import layers


@dataclass(frozen=True)
class Obstacle:
    """A group of channels that stays, and what the model would save without all of its channels but one.

    Attributes:
        group: its name.
        channels: how many there are; 1 where none can go alone.
        macs: share of the model's multiply-accumulates, 0 to 1.
        params: share of its parameters.
        why: what keeps them.
    """

    group: str
    channels: int
    macs: float
    params: float
    why: str


@dataclass(frozen=True)
class Reach:
    """Shares of the model that go where each group keeps a single channel, and what stays, the dearest first.

    Attributes:
        macs: share of multiply-accumulates that can be removed, 0 to 1.
        params: share of parameters.
        groups: how many groups can lose channels and are refitted.
        obstacles: all other groups, by MACs.
    """

    macs: float
    params: float
    groups: int
    obstacles: tuple[Obstacle, ...]


def reach(artifact: Artifact) -> Reach:
    """What removing channels can reach in a model."""
    channels = artifact.channels
    known = layers(artifact.module)
    free = [g for g in budget.removable(artifact.module, channels) if judged(g, known)]
    going = {id(g) for g in free}
    stuck = [g for g in channels.groups if id(g) not in going and g.members]
    every = [*free, *stuck]
    (macs, all_macs), (params, all_params) = (_shares(artifact, every, len(free), unit) for unit in ("macs", "params"))
    stay = list(zip(every, macs, params, strict=True))[len(free) :]
    # Constants have channels, and cost nothing.
    rows = [Obstacle(g.name, g.channels, float(m), float(p), _why(g)) for g, m, p in stay if m or p]
    rows.sort(key=lambda row: (-row.macs, -row.params))
    return Reach(all_macs, all_params, len(free), tuple(rows))


def _why(group: Group) -> str:
    if group.frozen:
        return group.frozen
    return "it is a single channel" if group.channels < 2 else "no layer that reads them can be refitted"


def _shares(artifact: Artifact, groups: Sequence[Group], free: int, unit: str) -> tuple[np.ndarray, float]:
    """What each group alone would save, of a group that is one channel that channel, and what the free ones save together."""
    model = budget.cost_model(artifact, groups, unit)
    full = np.array([g.channels for g in groups], dtype=float)
    whole = model(full)
    if not whole:
        return np.zeros(len(full)), 0.0
    together = np.where(np.arange(len(full)) < free, 1.0, full)
    return model.saved(full, np.where(full > 1, full - 1, full)) / whole, 1 - model(together) / whole
