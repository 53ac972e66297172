"""What became of every layer: the dense model and the result counted layer by layer, and why channels and activations stayed."""

from __future__ import annotations

from torch import nn
from torch.fx import GraphModule

from compress.artifact import Artifact
from compress.edits import Keep
from compress.graph.linearize import activations
from compress.graph.merge.segments import blocked
from compress.measure.cost import LayerCost
from compress.report.records import LayerRecord, Stays


def layer_records(dense: Artifact, result: Artifact) -> tuple[LayerRecord, ...]:
    """Layers and activations of the dense model in the order in which they run, then layers that only the result has."""
    before, after = _costs(dense), _costs(result)
    acting = {one.path: type(dense.module.get_submodule(one.path)).__name__ for one in activations(dense.module)}
    why = _frozen(dense, result)
    order = {name: place for place, name in enumerate(_names(dense.module))}
    rows: list[LayerRecord] = []
    # What runs inside a layer that is kept whole has no place of its own, and comes last.
    for name in sorted({**before, **acting}, key=lambda one: order.get(one, len(order))):
        if name in before:
            rows.append(_row(name, before[name], after.get(name), dense, result, why))
        else:
            rows.append(LayerRecord(name=name, kind=acting[name]))
    return (*rows, *(_row(name, None, after[name], dense, result, why) for name in after if name not in before))


def _names(module: GraphModule) -> list[str]:
    """What runs, in order: modules by their paths, everything else by its node."""
    return list(dict.fromkeys(str(node.target) if node.op == "call_module" else node.name for node in module.graph.nodes))


def staying(dense: Artifact) -> tuple[Stays, ...]:
    """Activations that could not be linearized to any use, and why."""
    return tuple(Stays(activation=path, reason=why) for path, why in blocked(dense.module).items() if why)


def _costs(artifact: Artifact) -> dict[str, LayerCost]:
    return {layer.name: layer for layer in artifact.cost.layers}


def _frozen(dense: Artifact, result: Artifact) -> dict[str, str]:
    """Layer -> why none of its channels could go; empty for a run that never looked at channels."""
    if not any(isinstance(edit, Keep) for edit in result.plan.edits):
        return {}
    groups = dense.channels.groups
    # A layer whose channels lie in several groups can lose some as long as one of them is free.
    free = {path for group in groups if group.frozen is None for path in group.producers}
    return {path: group.frozen for group in groups if group.frozen for path in group.producers if path not in free}


def _row(
    name: str, before: LayerCost | None, after: LayerCost | None, dense: Artifact, result: Artifact, why: dict[str, str]
) -> LayerRecord:
    return LayerRecord(
        name=name,
        kind=(before or after or LayerCost(name, "", 0, 0, ())).kind,
        width=None if before is None else _width(dense.module, name),
        width_after=None if after is None else _width(result.module, name),
        params=None if before is None else before.params,
        params_after=None if after is None else after.params,
        macs=None if before is None else before.macs,
        macs_after=None if after is None else after.macs,
        frozen=why.get(name, ""),
    )


def _width(module: GraphModule, name: str) -> int | None:
    """Channels that a layer makes, as its own attributes say."""
    found: object = dict(module.named_modules()).get(name)
    if not isinstance(found, nn.Module):
        return None
    for attribute in ("out_channels", "out_features", "hidden_size", "embedding_dim", "num_features"):
        value = getattr(found, attribute, None)
        if isinstance(value, int):
            return value
    shape = getattr(found, "normalized_shape", None)
    return int(shape[-1]) if isinstance(shape, tuple) and shape else None
