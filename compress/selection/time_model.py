"""A budget of milliseconds: what a network takes as a function of its channel counts, for a device that was timed."""

from __future__ import annotations

from collections.abc import Sequence

from compress.artifact import Artifact
from compress.entropy.allocate import Axis, CostModel
from compress.graph.channels.solve import Group
from compress.measure.layer_times import LayerTimes, layers
from compress.selection.budget import axes, touching


def time_model(artifact: Artifact, groups: Sequence[Group], times: LayerTimes, batch: int) -> CostModel:
    """Milliseconds as a function of the channel counts of `groups`."""
    parameters, members = dict(artifact.module.named_parameters()), touching(groups)
    fixed = times.rest[0]
    terms: list[tuple[float, list[Axis]]] = []
    for layer in layers(artifact.module, artifact.inputs, batch):
        name = f"{layer.path}.weight"
        if name not in parameters or layer.kind not in times.kinds:
            continue
        constant, per_out, per_in, per_both = times.kinds[layer.kind]
        lengths = axes(parameters[name], members.get(name, ()))
        # Each length with the share that channels within heads leave of it.
        out, into = ([lengths[d], lengths[d + len(lengths) // 2]] for d in (0, 1))
        fixed += constant
        terms += [(per_out + times.rest[1] * layer.elements, out), (per_in, into), (per_both, [*out, *into])]
    return CostModel.of(fixed, terms)
