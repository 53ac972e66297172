"""What channels cost: parameters, multiply-accumulates and bytes as functions of the channel counts of all groups.

Every tensor's size is a product of axes, and an axis that groups touch is as long as their channels make it. A layer's MACs are
proportional to the number of its weights, at a rate that the dense model tells; those of a functional layer are the parameters
that its weight is made of. Activations that are multiplied with each other (queries and keys, their scores and values) cost what
the lengths of their axes say.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from compress.artifact import Artifact
from compress.entropy.allocate import Axis, CostModel, lowest
from compress.errors import BadInput, Infeasible
from compress.graph import operations
from compress.graph.channels.groups import Member
from compress.graph.channels.solve import Channels, Group
from compress.measure.asked import parse_target
from compress.measure.cost import Cost

_FUNCTIONAL = operations.functions("convolution", "linear")
_UNITS = {"params": "parameters", "macs": "MACs", "size": "bytes"}


def cost_model(artifact: Artifact, groups: Sequence[Group], unit: str) -> CostModel:
    """Cost in `unit` ("params", "macs" or "size") as a function of the channel counts of `groups`.

    Raises:
        BadInput: activations or single weights, whose number no removal of channels decides.
    """
    if unit == "weights":
        raise BadInput(
            "A target in weights masks single weights, which this method does not. Take a target in params, macs or size, or "
            "--method lottery, sensitivity or snip."
        )
    if unit in ("latency", "ms"):
        raise BadInput(
            "A target in latency is looked for by timing, which a dry run does not do; 'compress plan' and 'compress run' do."
        )
    if unit == "activations":
        raise BadInput(
            "A target in activations cannot be met by removing channels. Take --method easier or nepenthe, or a target in "
            "params, macs or size."
        )
    # Of the dense model: per entry of a weight, MACs do not depend on how many channels are left.
    counted = artifact.cost
    scales = _scales(artifact.module, counted, artifact.channels, unit)
    members = touching(groups)
    tensors = [(scale, axes(tensor, members.get(name, ()))) for name, (tensor, scale) in scales.items()]
    model = CostModel.of(0.0, tensors + (_products(counted, artifact.channels, groups) if unit == "macs" else []))
    # What the tensors of the model do not explain is the cost that no choice changes.
    whole = of(counted, unit)
    full = np.array([g.channels for g in groups], dtype=float)
    return replace(model, fixed=float(whole) - model(full))


def _scales(module: GraphModule, counted: Cost, channels: Channels, unit: str) -> dict[str, tuple[Tensor, float]]:
    """Tensors that count, with the cost per entry."""
    parameters = dict(module.named_parameters())
    if unit == "params":
        return {name: (p, 1.0) for name, p in parameters.items()}
    if unit == "size":
        named: dict[str, Tensor] = {**parameters, **dict(module.named_buffers())}
        # a tied tensor lies in the file once
        return {name: (t, float(t.element_size())) for name, t in named.items() if channels.tied.get(name, name) == name}
    found: dict[str, tuple[Tensor, float]] = {}
    nodes = {node.name: node for node in module.graph.nodes if node.target in _FUNCTIONAL}
    of_layer: dict[str, set[str]] = {}
    for name in parameters:
        of_layer.setdefault(name.rpartition(".")[0], set()).add(name)
    for one in counted.layers:
        inside = _behind(nodes[one.name]) if one.name in nodes else of_layer.get(one.name, set())
        own = {name: parameters[name] for name in inside if name in parameters}  # a fixed kernel is a buffer
        weights = {name: p for name, p in own.items() if sum(n > 1 for n in p.shape) > 1}
        # every entry of a recurrent layer's matrices meets every step once, so that all have one rate
        entries = sum(p.numel() for p in weights.values())
        if one.macs:
            found |= {name: (p, one.macs / entries) for name, p in weights.items()}
    return found


def _products(counted: Cost, channels: Channels, groups: Sequence[Group]) -> list[tuple[float, list[Axis]]]:
    """What each product of activations costs as a whole, with the shares of its axes that are left."""
    within = channels.within.products if channels.within is not None else {}
    found: list[tuple[float, list[Axis]]] = []
    for one in counted.layers:
        products = channels.products.get(one.name, ())
        whole = sum(product.macs for product in products)
        for i, product in enumerate(products):
            # Positions within heads are those of the model that is solved for them.
            inner = within[one.name][i].axes if one.name in within else ()
            kept = [_share(labels, groups, False) for labels in product.axes] + [_share(labels, groups, True) for labels in inner]
            found.append((one.macs * product.macs / whole, kept))
    return found


def _share(labels: Tensor, groups: Sequence[Group], inner: bool) -> Axis:
    """What is left of an axis, as a share of it."""
    shares = {g: float(np.isin(labels.numpy(), one.labels).mean()) for g, one in enumerate(groups) if one.inner == inner}
    return 1.0 - sum(shares.values()), {g: share / groups[g].channels for g, share in shares.items() if share}


def _behind(node: Node) -> set[str]:
    """The parameters that the weight of a functional layer is made of."""
    found: set[str] = set()
    seen: set[Node] = set()
    waiting = list(node.all_input_nodes[1:2])
    while waiting:
        source = waiting.pop()
        if source.op == "get_attr":
            found.add(str(source.target))
        waiting += [n for n in source.all_input_nodes if n not in seen]
        seen |= set(source.all_input_nodes)
    return found


def touching(groups: Sequence[Group]) -> dict[str, list[tuple[int, Group, Member]]]:
    """Per tensor, what groups have in it, each with the group's position."""
    found: dict[str, list[tuple[int, Group, Member]]] = {}
    for g, group in enumerate(groups):
        for member in group.members:
            found.setdefault(member.tensor, []).append((g, group, member))
    return found


def axes(tensor: Tensor, members: Iterable[tuple[int, Group, Member]]) -> list[Axis]:
    """Length of each axis of a tensor of these members of groups, and behind them what is left of each as a share of 1.

    The shares are what channels within heads leave of an axis whose length is that of the heads.
    """
    lengths = [float(n) for n in tensor.shape] or [1.0]
    base, parts = lengths + [1.0] * len(lengths), [defaultdict[int, float](float) for _ in range(2 * len(lengths))]
    for g, group, member in members:
        touched = float((member.index >= 0).sum()) / (lengths[member.dim] if group.inner else 1.0)
        at = member.dim + len(lengths) * group.inner
        base[at] -= touched
        # Behind a flatten one channel is several columns.
        parts[at][g] += touched / group.channels
    return list(zip(base, parts, strict=True))


def absolute(target: str, model: CostModel, groups: Sequence[Group], align: int, whole: float | None = None) -> float:
    """A target such as "macs=0.5" as a cost.

    Args:
        target: a share of `whole`, or a size.
        model: of what channels cost.
        groups: all that may lose channels.
        align: channel counts are multiples of it.
        whole: cost of the dense model; where it is left out, of the model that the groups are of.

    Raises:
        Infeasible: below what the fewest channels cost, or not below the dense model; tells the reachable range.
    """
    unit, amount = parse_target(target)
    now, least = model(np.array([g.channels for g in groups], dtype=float)), model(lowest([g.channels for g in groups], align))
    whole = whole or now
    wanted = amount if unit == "size" else amount * whole
    # A target at or above the present cost would remove nothing, and is refused rather than met by doing nothing.
    if least <= wanted < now:
        return wanted
    if unit == "size":
        reachable = f"size={least / 1e6:.3g}MB to size={now / 1e6:.3g}MB"
    else:
        reachable = f"{unit}={least / whole:.3g} to {unit}={now / whole:.3g}"
    raise Infeasible(
        f"The target {target} cannot be reached by removing channels: the {len(groups)} removable groups allow {reachable} "
        f"({_UNITS[unit]}{f', channels in multiples of {align}' if align > 1 else ''}). Choose a target inside."
    )


def of(found: Cost, unit: str) -> float:
    """A cost in the unit of a target: parameters, MACs, or bytes."""
    return {"params": found.params, "macs": found.macs, "size": found.weight_bytes}[unit]


def met(target: str, artifact: Artifact, dense: Artifact) -> bool:
    """Whether a model is as small already as a share of the dense one, or a size, asks for."""
    unit, amount = parse_target(target)
    now, whole = (of(one.cost, unit) for one in (artifact, dense))
    return now <= (amount if unit == "size" else amount * whole)


def removable(module: nn.Module, channels: Channels) -> tuple[Group, ...]:
    """Groups that can lose channels and have at least two."""
    return tuple(g for g in channels.removable if g.channels > 1)
