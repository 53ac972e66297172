"""`compress analyze`: what every group of channels carries, what it costs, and what removing half of it would save.

One streaming pass of the dense model gives the states of all activations and the moments of all consumers; the loss curves
follow from the moments alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch.fx import GraphModule

from compress.artifact import Artifact
from compress.data import calibration
from compress.entropy.obs import Sweep
from compress.entropy.spatial import Spatial
from compress.graph.channels.solve import Group
from compress.graph.linearize import activations
from compress.graph.merge.segments import blocked
from compress.refit import refit
from compress.selection import budget, depth
from compress.selection import channels as selection
from compress.selection.merge_candidates import raced, saved_ms, shortest
from compress.stage import Context
from compress.statistics import spatial_maps
from compress.statistics.collect import Statistics
from compress.training.guidance import log_volume

_TOLERANCE = 0.01


@dataclass(frozen=True)
class Row:
    """One group of channels, or an activation that belongs to none.

    Attributes:
        layer: the group's name (its first producer), or the activation's path.
        channels: how many; 0 for an activation inside what could not be traced.
        activation: path of the activation behind the layer, of which the next nine speak.
        entropy: its state entropy, mean bits per channel in [0, 1], as `--entropy` takes it.
        always_on, always_off: shares of its channels that never switched.
        upper: share of the time that its channels are in a third regime (ReLU6 above 6), None where it has none.
        with_activations: other activations that have to be linearized as well, so that layers around this one can become one.
        pointwise: convolutions that have to be reduced to 1x1 for that, because it would take more operations otherwise.
        linearized_saves_ms: milliseconds of a call that these layers save as one, by a race; below 0 where they are slower,
            None where nothing was timed or could be merged.
        linearized_ci95: 95 % confidence interval of that race's speed-up; holding 1 means: cannot tell.
        stays: why no affine function can stand for it, or why no layers could be merged if one did.
        needed: fewest channels that keep the weighted error of all consumers within 1 % of their variance.
        error_at_half: that error, as a share, with half of the channels left and the consumers refitted.
        spatial: spatial entropy of the maps of these layers, mean over maps that vary, where it was asked for: in [0, 1] if
            pairwise, in bits if aura.
        spatial_constant: share of their maps that are constant.
        log_volume: mean nats per value by which the layers that make the channels stretch (above 0) or squeeze their input.
        params, macs: of these layers, per sample.
        params_saved, macs_saved: by removing half of the channels, consumers included; shares of the whole model.
        frozen: why no channel can go.
    """

    layer: str
    channels: int
    activation: str | None = None
    entropy: float | None = None
    always_on: float | None = None
    always_off: float | None = None
    upper: float | None = None
    with_activations: tuple[str, ...] = ()
    pointwise: tuple[str, ...] = ()
    linearized_saves_ms: float | None = None
    linearized_ci95: tuple[float, float] | None = None
    stays: str | None = None
    needed: int | None = None
    error_at_half: float | None = None
    spatial: float | None = None
    spatial_constant: float | None = None
    log_volume: float | None = None
    params: int | None = None
    macs: int | None = None
    params_saved: float | None = None
    macs_saved: float | None = None
    frozen: str | None = None


def analyze(artifact: Artifact, context: Context, definition: str | None = None) -> list[Row]:
    """A row per group of channels in graph order, then the activations that belong to none. With
    `context.race`, what linearizing saves.

    `definition` is that of the spatial entropy, which takes a pass of its own; None for none.

    Raises:
        EmptyData: there are no images.
    """
    channels = artifact.channels
    groups = budget.removable(artifact.module, channels)
    found = refit.statistics(artifact, context, groups, states=True)
    curves = selection.sweeps(
        selection.Losses(artifact.module, found), groups, lambda share: context.progress("loss curves", share, "")
    )
    behind = depth.behind(artifact.module, channels, found.states)
    about = _about_activations(artifact.module, found)
    for path, columns in _races(artifact, context).items():
        about.setdefault(path, {"activation": path}).update(columns)
    saved = {unit: _saved(artifact, groups, unit) for unit in ("params", "macs")}
    layers = {one.name: one for one in artifact.cost.layers}
    maps = {} if definition is None else _maps(artifact, context, definition)
    rows = []
    for group in channels.every:
        made = [layers[path] for path in group.producers if path in layers]
        curve = curves.get(group.name)
        rows.append(
            Row(
                layer=group.name,
                channels=group.channels,
                **about.pop(next(iter(behind.get(group.name, ())), ""), {}),
                needed=None if curve is None else _needed(curve),
                error_at_half=None if curve is None else _error(curve, (group.channels + 1) // 2),
                **_spatial([maps[path] for path in group.producers if path in maps]),
                log_volume=_volume(artifact.module, group),
                params=sum(one.params for one in made),
                macs=sum(one.macs for one in made),
                params_saved=saved["params"].get(group.name),
                macs_saved=saved["macs"].get(group.name),
                frozen=group.frozen,
            )
        )
    return rows + [
        Row(path, len(found.states[path].on) if path in found.states else 0, **columns) for path, columns in about.items()
    ]


def _about_activations(module: GraphModule, found: Statistics) -> dict[str, dict[str, Any]]:
    """What a row says of an activation, by its path, in the order of the graph; those inside what was not traced come last."""
    why = {activation.path: activation.refused for activation in activations(module) if activation.refused} | blocked(module)
    about: dict[str, dict[str, Any]] = {}
    for path in dict.fromkeys([*found.states, *why]):
        about[path] = {"activation": path, "stays": why.get(path)}
        if (state := found.states.get(path)) is not None:
            about[path] |= {"entropy": found.bits(path), "always_on": state.always_on, "always_off": state.always_off}
            about[path]["upper"] = None if state.upper is None else float(state.upper.double().mean()) / state.seen
    return about


def _races(artifact: Artifact, context: Context) -> dict[str, dict[str, Any]]:
    """What linearizing each activation would save, where layers could then become one."""
    found: dict[str, dict[str, Any]] = {}
    best = shortest(artifact)
    for number, (path, segment) in enumerate(best.items()):
        found[path] = {"with_activations": tuple(s for s in segment.activations if s != path), "pointwise": segment.pointwise}
        if context.race is not None:
            timing = raced(artifact, segment, context.race)
            found[path] |= {"linearized_saves_ms": saved_ms(timing), "linearized_ci95": timing.ci95}
            context.progress("time segments", (number + 1) / len(best), path)
    return found


def _maps(artifact: Artifact, context: Context, definition: str) -> dict[str, Spatial]:
    """Spatial entropy by convolution, over the calibration images."""
    return spatial_maps.entropies(artifact.module, context.calibration.inputs(calibration.MAPS), context.device, definition)


def _spatial(found: list[Spatial]) -> dict[str, Any]:
    if not found:
        return {}
    return {
        "spatial": sum(one.value for one in found) / len(found),
        "spatial_constant": sum(one.constant for one in found) / len(found),
    }


def _needed(curve: Sweep) -> int:
    return next(n for n in range(1, len(curve.losses)) if _error(curve, n) <= _TOLERANCE)


def _error(curve: Sweep, n: int) -> float:
    """Weighted error with n channels as a share of what all of them explain."""
    whole, none = float(curve.losses[-1]), float(curve.losses[0])
    return max(0.0, (float(curve.losses[n]) - whole) / max(none - whole, 1e-30))


def _volume(module: GraphModule, group: Group) -> float | None:
    """Mean over the layers that make the channels."""
    known = {path for path, _ in module.named_modules()}
    found = [v for path in group.producers if path in known and (v := log_volume(module.get_submodule(path))) is not None]
    return sum(found) / len(found) if found else None


def _saved(artifact: Artifact, groups: Sequence[Group], unit: str) -> dict[str, float]:
    model = budget.cost_model(artifact, groups, unit)
    full = np.array([g.channels for g in groups], dtype=float)
    shares = model.saved(full, np.floor(full / 2)) / max(model(full), 1.0)
    return {g.name: float(share) for g, share in zip(groups, shares, strict=True)}
