"""What the depth methods ask about the activations of a model: which are left, which can go, how far quality has fallen."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch.fx import GraphModule, Node

from compress.artifact import Artifact
from compress.entropy.state import States
from compress.errors import Infeasible, UnsupportedModel
from compress.graph.channels.solve import Channels
from compress.graph.linearize import Activation, activations
from compress.measure import quality
from compress.measure.asked import parse_target
from compress.refit import refit
from compress.stage import Context

MAX_DROP = 0.5
"""Points of held-out quality that depth may cost where `--max-drop` says nothing."""


def free(artifact: Artifact) -> tuple[Activation, ...]:
    """Activations that an affine function can replace, in the order of the graph.

    Raises:
        UnsupportedModel: there is none; tells why.
    """
    known = activations(artifact.module)
    if found := tuple(activation for activation in known if activation.refused is None):
        return found
    reasons = [f"{activation.path}: {activation.refused}" for activation in known[:3]]
    raise UnsupportedModel(
        "The model has no activation that an affine function can replace; needed is at least one. "
        + (f"Found are {len(known)} that must stay ({'; '.join(reasons)}). " if known else "")
        + "Remove channels instead, for instance with --method entropic --depth 0."
    )


def spared(artifact: Artifact, target: str | None) -> int:
    """How many of the activations that could go a target leaves; 0 without one, where quality alone says when to stop.

    Raises:
        BadInput, UnsupportedModel: see `free`.
        Infeasible: the target is not in activations, or leaves fewer than have to stay.
    """
    known, can_go = len(activations(artifact.module)), len(free(artifact))
    stay = known - can_go
    if target is None:
        return 0
    unit, share = parse_target(target)
    reachable = f"activations={stay / known:.3g} to activations=1"
    if unit != "activations":
        raise Infeasible(
            f"The target {target} cannot be reached by depth alone, which removes no channels; it allows {reachable}. "
            "Take such a target, none at all (--max-drop then says where to stop), or --method entropic."
        )
    # 1e-9: a share such as 0.3 of 10 is not 3 in floating point.
    if (wanted := math.ceil(share * known - 1e-9)) < stay:
        raise Infeasible(
            f"The target {target} leaves {wanted} of {known} activations, but {stay} have to stay ('compress explain' tells "
            f"why); reachable is {reachable}. Choose a target inside."
        )
    return wanted - stay


def widths(artifact: Artifact) -> dict[str, int]:
    """Channels of every activation that the graph knows, by path."""
    nodes = {node.name: node for node in artifact.module.graph.nodes}
    return {
        activation.path: nodes[activation.node].meta["shape"][activation.axis]
        for activation in activations(artifact.module)
        if activation.node
    }


def entropies(artifact: Artifact, context: Context) -> dict[str, float]:
    """Mean state entropy of each activation that can go, bits in [0, 1], over the calibration images, as `--entropy` takes it."""
    found = refit.statistics(artifact, context, (), states=True)
    return {activation.path: found.bits(activation.path) for activation in free(artifact)}


def held_out(artifact: Artifact, context: Context, limit: int | None = None) -> quality.Quality:
    """Quality on the held-out part of the training data; the test data is never read."""
    spec = context.data.spec
    metric, _ = quality.choose(context.recipe.metric, spec.task, spec.labeled)
    # Never the test data: who stops by it would have chosen by it.
    batches = context.data.held_out.batches(quality.BATCH, limit=limit, device=context.device)
    return quality.evaluate(artifact.module, batches, metric, context.device, context.dense.module)


def lowest(found: Mapping[str, float], most: int, together: int = 1) -> list[str]:
    """The activations of the lowest entropy, `together` of them and with these all of entropy 0, at most `most`."""
    order = sorted(found, key=found.__getitem__)
    # Those of entropy 0 are linear already, so they cost nothing and go at once.
    return [path for place, path in enumerate(order) if place < together or found[path] == 0][:most]


def behind(module: GraphModule, channels: Channels, states: Mapping[str, States]) -> dict[str, tuple[str, ...]]:
    """Paths of the activations behind each group's producers that have its channels, by the name of the group, in graph order."""
    producer = {path: g.name for g in channels.groups for path in g.producers}
    found: dict[str, tuple[str, ...]] = {}
    for node in module.graph.nodes:
        if node.op == "call_module" and str(node.target) in states:
            name = _source(node, producer)
            # An activation behind a concatenation has the channels of several groups and speaks for none.
            if name is not None and len(states[str(node.target)].on) == channels.group(name).channels:
                found[name] = (*found.get(name, ()), str(node.target))
    return found


def _source(node: Node, producer: dict[str, str]) -> str | None:
    """The group whose channels reach a node, looked for backwards through what is no producer."""
    waiting, seen = list(node.all_input_nodes), set[Node]()
    while waiting:
        # Nearest first: the producer right in front of the activation.
        source = waiting.pop(0)
        if source in seen:
            continue
        seen.add(source)
        if source.op == "call_module" and str(source.target) in producer:
            return producer[str(source.target)]
        waiting.extend(source.all_input_nodes)
    return None
