"""A budget of milliseconds: what a network takes as a function of its channel counts, for a device that was timed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compress.artifact import Artifact
from compress.entropy.allocate import CostModel
from compress.graph.channels.solve import Group
from compress.measure.layer_times import LayerTimes, layers
from compress.selection.budget import axes


def time_model(artifact: Artifact, groups: Sequence[Group], times: LayerTimes, batch: int) -> CostModel:
    """Milliseconds as a function of the channel counts of `groups`."""
    parameters, none = dict(artifact.module.named_parameters()), np.zeros(len(groups))
    fixed = times.rest[0]
    scale: list[float] = []
    base: list[tuple[float, float]] = []
    per_channel: list[tuple[np.ndarray, np.ndarray]] = []
    for layer in layers(artifact.module, artifact.inputs, batch):
        name = f"{layer.path}.weight"
        if name not in parameters or layer.kind not in times.kinds:
            continue
        constant, per_out, per_in, per_both = times.kinds[layer.kind]
        lengths, touched = axes(parameters[name], name, groups)
        out, into = (lengths[0], touched[0]), (lengths[1], touched[1])
        one = (1.0, none)
        fixed += constant
        for rate, left, right in (
            (per_out + times.rest[1] * layer.elements, out, one),
            (per_in, into, one),
            (per_both, out, into),
        ):
            scale.append(rate)
            base.append((left[0], right[0]))
            per_channel.append((left[1], right[1]))
    return CostModel(fixed, np.array(scale), np.array(base), np.array(per_channel))
