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

UNITS = ("macs", "params")


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
    stuck = [g for g in channels.groups if g not in free and g.members]
    every = [*free, *stuck]
    held = {unit: _held(artifact, every, unit) for unit in UNITS}
    joint = {unit: _joint(artifact, every, len(free), unit) for unit in UNITS}
    rows = [
        Obstacle(g.name, g.channels, held["macs"][i], held["params"][i], _why(g)) for i, g in enumerate(every) if i >= len(free)
    ]
    rows = [row for row in rows if row.macs or row.params]  # constants have channels, and cost nothing
    rows.sort(key=lambda row: (-row.macs, -row.params))
    return Reach(joint["macs"], joint["params"], len(free), tuple(rows))


def _why(group: Group) -> str:
    if group.frozen:
        return group.frozen
    return "it is a single channel" if group.channels < 2 else "no layer that reads them can be refitted"


def _shares(artifact: Artifact, groups: Sequence[Group], unit: str, kept: Sequence[np.ndarray]) -> list[float]:
    model = budget.cost_model(artifact, groups, unit)
    whole = model(np.array([g.channels for g in groups], dtype=float))
    return [float(1 - model(counts) / whole) if whole else 0.0 for counts in kept]


def _held(artifact: Artifact, groups: Sequence[Group], unit: str) -> list[float]:
    """What each group alone would save; of a group that is one channel, that channel."""
    full = np.array([g.channels for g in groups], dtype=float)
    return _shares(artifact, groups, unit, [np.where(np.arange(len(full)) == i, full > 1, full) for i in range(len(full))])


def _joint(artifact: Artifact, groups: Sequence[Group], free: int, unit: str) -> float:
    full = np.array([g.channels for g in groups], dtype=float)
    return _shares(artifact, groups, unit, [np.where(np.arange(len(full)) < free, 1.0, full)])[0]
