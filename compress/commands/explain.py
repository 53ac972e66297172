"""`compress explain`: which channels belong together, which layers could become one, what stays as it is, and why."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Unpack, cast, overload

import torch
from torch import nn

from compress.artifact import Artifact
from compress.checkpoint.load import parse_shape
from compress.checkpoint.load.architectures import build
from compress.checkpoint.load.live_module import in_memory
from compress.detection import wholes
from compress.errors import BadInput, WholeDetector
from compress.graph.channels.solve import Channels, Group
from compress.graph.linearize import activations
from compress.graph.merge.segments import blocked
from compress.keywords import Common, with_settings
from compress.pipeline.given import IN_MEMORY, resolved_recipe
from compress.pipeline.prepare import opened
from compress.recipe import make
from compress.selection.merge_candidates import shortest
from compress.selection.reach import reach as within_reach
from compress.statistics.activation_states import data_free


@dataclass(frozen=True)
class GroupRow:
    """Channels that can only go together. `frozen` says why they stay."""

    name: str
    channels: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    frozen: str | None


@dataclass(frozen=True)
class MemberRow:
    """One parameter axis that a group of channels touches, and how many of its positions."""

    group: str
    tensor: str
    axis: int
    role: str
    positions: int
    channels: int
    frozen: str | None


@dataclass(frozen=True)
class DepthRow:
    """One activation, and the shortest segment of layers that could become one if it were linearized.

    Attributes:
        activation: path of the activation.
        entropy: mean bits per channel that the batch norm in front of it tells without data; `compress analyze` counts.
        merges: the layers of the segment.
        with_activations: other activations that would have to be linearized, too.
        pointwise: convolutions that would have to be reduced to 1x1, because the one layer would do more work otherwise.
        macs: multiply-accumulates of the one layer as a share of those that the segment has now; above 1 it does more work.
        padding_moves: whether padding would have to move to the first layer, which changes values at the border.
        stays: why it cannot be merged across.
    """

    activation: str
    entropy: float | None = None
    merges: tuple[str, ...] = ()
    with_activations: tuple[str, ...] = ()
    pointwise: tuple[str, ...] = ()
    macs: float | None = None
    padding_moves: bool | None = None
    stays: str | None = None


@dataclass(frozen=True)
class ReachRow:
    """What removing channels can reach in a model, or a group of channels that stays.

    Attributes:
        group: WITHIN_REACH in the first row; in every other one a group that stays, the dearest first.
        channels: how many; in the first row, how many groups.
        macs: share of the model's multiply-accumulates that goes, or that stays with this group, 0 to 1.
        params: the same of its parameters.
        stays: why.
    """

    group: str
    channels: int
    macs: float
    params: float
    stays: str | None = None


WITHIN_REACH = "within reach"


Model = nn.Module | str | Path


@overload
def explain(
    model: Model | None,
    layer: None = None,
    *,
    depth: Literal[False] = False,
    reach: Literal[False] = False,
    **settings: Unpack[Common],
) -> list[GroupRow]: ...
@overload
def explain(model: Model | None, layer: str, **settings: Unpack[Common]) -> list[MemberRow]: ...
@overload
def explain(model: Model | None, *, depth: Literal[True], **settings: Unpack[Common]) -> list[DepthRow]: ...
@overload
def explain(model: Model | None, *, reach: Literal[True], **settings: Unpack[Common]) -> list[ReachRow]: ...
@with_settings
def explain(
    model: Model | None, layer: str | None = None, *, depth: bool = False, reach: bool = False, **settings: Any
) -> list[GroupRow] | list[MemberRow] | list[DepthRow] | list[ReachRow]:
    """Groups of channels of a model; with `layer`, the tensors coupled to the channels of that layer; with `depth`, activations.

    With `reach`: the share of the model that removing channels can reach, and what stands in the way. None for the model: that of
    `arch`, with weights that are drawn, which say nothing of the coupling.

    Raises:
        BadInput: the model cannot be opened, has no such layer, or both `layer` and `depth` are given.
    """
    if (depth or reach) and layer is not None:
        flag = "--depth" if depth else "--reach"
        raise BadInput(f"Both a layer ({layer}) and {flag} are given; {flag} speaks of the whole model. Give one of them.")
    if model is None and settings.get("arch"):
        model = build(settings.pop("arch"), settings.pop("arch_kwargs", {})).eval()
    artifact = _opened(model, settings)
    if depth:
        return depth_rows(artifact)
    if reach:
        return reach_rows(artifact)
    channels = artifact.channels
    if layer is None:
        return [GroupRow(g.name, g.channels, g.producers, g.consumers, g.frozen) for g in channels.every]
    return [
        MemberRow(g.name, m.tensor, m.dim, m.role, int((m.index >= 0).sum()), g.channels, g.frozen)
        for g in groups_of(layer, channels, artifact)
        for m in g.members
    ]


def _opened(model: Model | None, settings: dict[str, Any]) -> Artifact:
    """The traced model; of a whole detector the part that computes tensors, which is said."""
    try:
        return opened(*resolved_recipe(model, None, settings))[0]
    except WholeDetector as found:
        detector = cast(wholes.Whole, wholes.found(cast(nn.Module, found.model)))
        shapes = make(model=IN_MEMORY, input_shape=settings.get("input_shape") or f"3x{wholes.SIDE}x{wholes.SIDE}").input_shape
        with torch.random.fork_rng(devices=()):
            inputs = detector.seen([torch.rand(parse_shape(shapes[0]))], 1)
        wholes.told_as_part(detector.model)
        return in_memory(detector.part, inputs=inputs)


def reach_rows(artifact: Artifact) -> list[ReachRow]:
    """The whole in one row, then a row for each group that stays, in the order of what it costs."""
    found = within_reach(artifact)
    rows = [ReachRow(WITHIN_REACH, found.groups, round(found.macs, 4), round(found.params, 4))]
    return rows + [ReachRow(o.group, o.channels, round(o.macs, 4), round(o.params, 4), o.why) for o in found.obstacles]


def depth_rows(artifact: Artifact) -> list[DepthRow]:
    """A row for every activation, in the order of the graph."""
    best = shortest(artifact)
    why, bits = blocked(artifact.module), data_free(artifact.module)
    rows: list[DepthRow] = []
    for activation in activations(artifact.module):
        if (one := best.get(activation.path)) is None:
            stays = activation.refused or why.get(activation.path, "no layers around it could become one")
            rows.append(DepthRow(activation.path, bits.get(activation.path), stays=stays))
            continue
        others = tuple(s for s in one.activations if s != activation.path)
        share = one.macs_after / max(one.macs_before, 1)
        rows.append(
            DepthRow(activation.path, bits.get(activation.path), one.layers, others, one.pointwise, share, bool(one.relocate))
        )
    return rows


def groups_of(layer: str, channels: Channels, artifact: Artifact) -> list[Group]:
    """Groups that are named after a layer, or else every group that touches it."""
    if named := [g for g in channels.every if g.name == layer]:
        return named
    if touching := [g for g in channels.every if any(m.module == layer or m.tensor == layer for m in g.members)]:
        return touching
    opaque = artifact.module.meta.get("opaque", {})
    if reason := next((text for path, text in opaque.items() if f"{layer}.".startswith(f"{path}.")), None):
        raise BadInput(f"{layer} {reason}, so it stays as it is. 'compress explain' without a layer lists what can change.")
    known = sorted({m.module for g in channels.groups for m in g.members if m.module})
    close = difflib.get_close_matches(layer, known, n=3, cutoff=0.4) or known[:3]
    raise BadInput(f"The model has no layer '{layer}' with channels; close are {', '.join(close)}. Give one of its names.")
