"""`compress analyze`: what every group of channels does on this data, and what removing half of it would save.

entropy       mean over channels of H(p), p = share of time that the rectifier behind the layer is on; bits
redundant     largest share of the channels that can go while the rest, refitted, keep the error of the consumers below 1 % of
what it is when all of them go
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch.fx import GraphModule, Node

from compress.artifact import Artifact
from compress.entropy import obs
from compress.entropy.state import States
from compress.graph.channels import Channels, Group, solve
from compress.measure.cost import Cost, cost
from compress.opening import prepare
from compress.recipe import make
from compress.stage import Context, Progress, silent
from compress.statistics import budget, selection
from compress.statistics.collect import ACTIVATIONS, Statistics, collect

NEGLIGIBLE = 0.01
BATCH = 125


@dataclass(frozen=True)
class LayerRow:
    """A group of channels, named after its first layer. None: not known, or nothing can be removed.

    Attributes:
        params: of all layers that make these channels.
        macs: of the same layers, per sample.
        entropy: mean state entropy of the rectifier behind them, bits.
        always_on: share of channels that are never off.
        always_off: share of channels that are never on.
        redundant: share of channels that the others can stand in for.
        half_saves_params: share of the model's parameters that go with half of the channels.
        half_saves_macs: the same of its MACs.
        frozen: why nothing can be removed.
    """

    layer: str
    channels: int
    params: int
    macs: int
    entropy: float | None
    always_on: float | None
    always_off: float | None
    redundant: float | None
    half_saves_params: float | None
    half_saves_macs: float | None
    frozen: str | None


def analyze(model: str | Path, *, progress: Progress = silent, **settings: Any) -> list[LayerRow]:
    """Entropy, redundancy, cost and savings of every group of channels, from one pass over `calibration` training images.

    Raises:
        BadInput: the model or the data cannot be used.
        UnsupportedModel: the model cannot be traced.
    """
    context, _ = prepare(make(model=str(model), **settings), progress)
    dense = context.dense
    channels = solve(dense.module, dense.inputs)
    removable = budget.removable(dense.module, channels)
    statistics = look(context, removable)
    spent = cost(dense.module, dense.inputs)
    saved = {unit: savings(dense, channels, removable, unit) for unit in ("params", "macs")} if removable else {}
    rows = []
    for number, group in enumerate(channels.groups):
        progress("redundancy", number / len(channels.groups), group.name)
        if group.producers:
            share = redundant(group, dense.module, statistics) if group in removable else None
            halved = {unit: of.get(group.name) for unit, of in saved.items()}
            rows.append(row(group, spent, site(dense.module, group, statistics), share, halved))
    progress("redundancy", 1.0, "")
    return rows


def look(context: Context, groups: Sequence[Group]) -> Statistics:
    """The one pass over the data."""
    recipe, data, module = context.recipe, context.data, context.dense.module
    limit = min(recipe.calibration, len(data.train))
    return collect(
        module,
        lambda: (b.inputs for b in data.train.batches(BATCH, limit=limit, seed=recipe.seed)),
        selection.consumers(module, groups),
        images=limit,
        device=context.device,
        classifier=data.spec.task == "classification",
        progress=lambda share: context.progress("statistics", share, ""),
    )


def savings(dense: Artifact, channels: Channels, groups: Sequence[Group], unit: str) -> dict[str, float]:
    """Share of the model's cost that goes with half of the channels of each group, the others as they are."""
    model = budget.cost_model(dense.module, dense.inputs, channels, groups, unit)
    counts = np.array([g.channels for g in groups], dtype=float)
    saved = model.saved(counts, counts // 2) / model(counts)
    return {group.name: float(share) for group, share in zip(groups, saved, strict=True)}


def redundant(group: Group, module: GraphModule, statistics: Statistics) -> float | None:
    """Share of the channels that the consumers hardly miss once the rest is refitted; None where regression knows no consumer."""
    forms = selection.Losses(module, statistics).of(group)
    if not forms:
        return None
    losses = obs.eliminate(forms).losses
    bearable = float(losses[-1]) + NEGLIGIBLE * (sum(form.total for form in forms) - float(losses[-1]))
    needed = next(n for n, loss in enumerate(losses.tolist()) if loss <= bearable)
    return 1 - needed / group.channels


def site(module: GraphModule, group: Group, statistics: Statistics) -> States | None:
    """On-counts of the first activation behind the layers that make the channels, across norms and sums."""
    makers = set(group.producers)
    front: list[Node] = [n for n in module.graph.nodes if n.op == "call_module" and n.target in makers]
    seen = set(front)
    while front:
        for user in front.pop(0).users:
            part = module.get_submodule(str(user.target)) if user.op == "call_module" else None
            if isinstance(part, ACTIVATIONS):
                return statistics.states.get(str(user.target))
            if user not in seen and user.target not in group.consumers:
                seen.add(user)
                front.append(user)
    return None


def row(group: Group, spent: Cost, states: States | None, share: float | None, saved: dict[str, float | None]) -> LayerRow:
    """Everything about one group."""
    made = [layer for layer in spent.layers if layer.name in group.producers]
    return LayerRow(
        layer=group.name,
        channels=group.channels,
        params=sum(layer.params for layer in made),
        macs=sum(layer.macs for layer in made),
        entropy=float(states.entropy.mean()) if states else None,
        always_on=states.always_on if states else None,
        always_off=states.always_off if states else None,
        redundant=share,
        half_saves_params=saved.get("params"),
        half_saves_macs=saved.get("macs"),
        frozen=group.frozen,
    )
