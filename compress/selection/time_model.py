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
    base: list[tuple[float, ...]] = []
    per_channel: list[tuple[np.ndarray, ...]] = []
    for layer in layers(artifact.module, artifact.inputs, batch):
        name = f"{layer.path}.weight"
        if name not in parameters or layer.kind not in times.kinds:
            continue
        constant, per_out, per_in, per_both = times.kinds[layer.kind]
        lengths, touched = axes(parameters[name], name, groups)
        # Each length with the share that channels within heads leave of it.
        out, into = (((lengths[d], touched[d]), (lengths[d + at], touched[d + at])) for d in (0, 1) for at in [len(lengths) // 2])
        one = ((1.0, none), (1.0, none))
        fixed += constant
        for rate, left, right in (
            (per_out + times.rest[1] * layer.elements, out, one),
            (per_in, into, one),
            (per_both, out, into),
        ):
            scale.append(rate)
            base.append(tuple(length for length, _ in (*left, *right)))
            per_channel.append(tuple(each for _, each in (*left, *right)))
    return CostModel(fixed, np.array(scale), np.array(base), np.array(per_channel))
