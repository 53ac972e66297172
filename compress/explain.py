"""`compress explain`: which channels belong together, which are frozen, and why."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.artifact import Artifact
from compress.errors import BadInput
from compress.graph.channels import Channels, Group, solve
from compress.opening import opened
from compress.recipe import make, model_path


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


def explain(model: str | Path, layer: str | None = None, **settings: Any) -> list[GroupRow] | list[MemberRow]:
    """Groups of channels of a model; with `layer`, the tensors that hang on the channels of that layer.

    Raises:
        BadInput: the model cannot be opened, or has no such layer.
    """
    artifact, _ = opened(make(model=model_path(model), **settings))
    channels = solve(artifact.module, artifact.inputs)
    if layer is None:
        return [GroupRow(g.name, g.channels, g.producers, g.consumers, g.frozen) for g in channels.groups]
    return [
        MemberRow(g.name, m.tensor, m.dim, m.role, int((m.index >= 0).sum()), g.channels, g.frozen)
        for g in groups_of(layer, channels, artifact)
        for m in g.members
    ]


def groups_of(layer: str, channels: Channels, artifact: Artifact) -> list[Group]:
    """Groups that are named after a layer, or else every group that touches it."""
    if named := [g for g in channels.groups if g.name == layer]:
        return named
    if touching := [g for g in channels.groups if any(m.module == layer or m.tensor == layer for m in g.members)]:
        return touching
    opaque = artifact.module.meta.get("opaque", {})
    if reason := next((text for path, text in opaque.items() if f"{layer}.".startswith(f"{path}.")), None):
        raise BadInput(f"{layer} {reason}, so it stays as it is. 'compress explain' without a layer lists what can change.")
    known = sorted({m.module for g in channels.groups for m in g.members if m.module})
    close = difflib.get_close_matches(layer, known, n=3, cutoff=0.4) or known[:3]
    raise BadInput(f"The model has no layer '{layer}' with channels; close are {', '.join(close)}. Give one of its names.")
