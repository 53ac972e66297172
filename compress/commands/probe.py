"""Where a model loses its input: a linear decoder behind every place that all information has to pass.

A place is an activation, or a sum behind which none follows at once, through which every path from input to output goes: what is
lost there is lost for good. Inside a residual block nothing is, since the stream passes beside it.

    lost = D(input, reconstruction) / D(input, mean input)      0: nothing is lost, 1: no more than the mean input is left

The decoders are fitted on calibration images and judged on held-out ones. The bottleneck of a model is the place at which `lost`
rises most; that of a plan the one at which it is furthest above the dense model's. Beyond `LIMIT` we predict that fine-tuning
will not recover. Readings of ours: places, the share, the limit (the authors look for the depth at which D saturates).

Source: see `entropy.reconstruction`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from compress.artifact import Artifact
from compress.data.calibration import STATISTICS
from compress.entropy.reconstruction import Decoder, Geometry, geometry, on_grid, relative_entropy, shrunk
from compress.errors import BadInput, UnsupportedModel
from compress.graph import operations
from compress.graph.linearize import channel_axis
from compress.stage import Context
from compress.statistics.activation_states import observed

LIMIT = 0.2
"""Share of the input that a plan may lose beyond the dense model before we predict that training will not recover."""
_ACTIVATIONS = operations.ACTIVATIONS | {nn.Tanh, nn.Softplus}
_SUMS = frozenset({"add", "iadd", "add_"})


@dataclass(frozen=True)
class Loss:
    """What is lost at one place.

    Attributes:
        place: module path of the activation, or name of the sum.
        bits: D, mean over held-out images.
        lost: the same as a share of what the mean input loses.
        planned_bits, planned_lost: of the model that a plan makes; None without one, or where it has no such place.
    """

    place: str
    bits: float
    lost: float
    planned_bits: float | None = None
    planned_lost: float | None = None


@dataclass(frozen=True)
class Probing:
    """What the probe found.

    Attributes:
        rows: the places in their order.
        bottleneck: the place at which most is lost; with a plan, at which the plan loses most.
        recovers: the prediction for a plan; None without one.
        verdict: the same in words.
    """

    rows: tuple[Loss, ...]
    bottleneck: str
    recovers: bool | None
    verdict: str


def probe(context: Context, planned: Artifact | None = None) -> Probing:
    """Probe the dense model and, beside it, what a plan makes of it.

    Raises:
        BadInput: the model reads numbers of tokens, which no linear decoder gives back.
        UnsupportedModel: there is no place that all information passes.
        EmptyData: there are no images.
    """
    rows = losses(context.dense, context)
    if planned is None:
        rises = [now.lost - before for now, before in zip(rows, (0.0, *(row.lost for row in rows)), strict=False)]
        most = max(range(len(rows)), key=rises.__getitem__)
        said = f"Most is lost at {rows[most].place}: {rows[most].lost:.0%} of the input, {rises[most]:.0%} of it there."
        return Probing(rows, rows[most].place, None, said)
    after = {row.place: row for row in losses(planned, context, context.dense)}
    rows = tuple(
        replace(row, planned_bits=after[row.place].bits, planned_lost=after[row.place].lost) if row.place in after else row
        for row in rows
    )
    most = max(rows, key=excess)
    recovers = excess(most) <= LIMIT
    said = (
        f"The plan loses most at {most.place}: {most.planned_lost or 0:.0%} of the input, the dense model {most.lost:.0%} of it. "
        f"Up to {LIMIT:.0%} more we predict that fine-tuning recovers: it {'does' if recovers else 'does not'}."
    )
    return Probing(rows, most.place, recovers, said)


def excess(row: Loss) -> float:
    """What a plan loses at a place beyond the dense model."""
    return -1.0 if row.planned_lost is None else row.planned_lost - row.lost


def losses(artifact: Artifact, context: Context, like: Artifact | None = None) -> tuple[Loss, ...]:
    """What a model has lost at each of its places, in their order.

    Args:
        artifact: the model.
        context: calibration images fit the decoders, held-out ones judge them.
        like: the model whose windows the decoders shall have, so that the two can be compared.

    Raises:
        BadInput, UnsupportedModel, EmptyData: as for `probe`.
    """
    _refuse_tokens(artifact.module)
    recipe, data, device = context.recipe, context.data, context.device
    hows = _geometries(like or artifact, context)
    limits = (context.calibration.images, min(recipe.calibration, len(data.held_out)))
    decoders = {name: Decoder(hows[name], limits[0], recipe.seed) for name in places(artifact.module) if name in hows}
    model = _Watched(artifact.module, decoders, device)
    total, seen = torch.zeros(()), 0
    for batch in context.calibration.batches():
        target = model.look(batch.inputs, lambda name, value, target: decoders[name].add(value, target))
        total, seen = total + target.double().sum(0).cpu(), seen + len(target)
        context.progress("probe", 0.5 * seen / limits[0], "")
    mean, seen = (total / seen).to(device), 0
    bits: dict[str, list[Tensor]] = {name: [] for name in decoders}
    empty: list[Tensor] = []
    for batch in data.held_out.batches(STATISTICS, limit=limits[1], seed=recipe.seed):
        target = model.look(
            batch.inputs, lambda name, value, target: bits[name].append(relative_entropy(target, decoders[name](value)))
        )
        empty.append(relative_entropy(target, mean.expand_as(target)))
        seen += len(target)
        context.progress("probe", 0.5 + 0.5 * seen / limits[1], "")
    none = max(float(torch.cat(empty).mean()), 1e-12)
    means = {name: float(torch.cat(found).mean()) for name, found in bits.items()}
    return tuple(Loss(name, mean, mean / none) for name, mean in means.items())


def places(module: GraphModule) -> dict[str, Node]:
    """Nodes that all information has to pass and behind which it can be looked at, by module path or node name, in order."""
    found: dict[str, Node] = {}
    for node in module.graph.nodes:
        if _is_activation(module, node) or (_is_sum(node) and not any(_is_activation(module, user) for user in node.users)):
            name = str(node.target) if node.op == "call_module" else node.name
            if name not in found and _all_pass(module, node):
                found[name] = node
    return found


def _is_activation(module: GraphModule, node: Node) -> bool:
    return node.op == "call_module" and type(module.get_submodule(str(node.target))) in _ACTIVATIONS


def _is_sum(node: Node) -> bool:
    """A sum of two values that the input has reached."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    both = [a for a in node.args if isinstance(a, Node) and a.op != "get_attr"]
    return node.op in ("call_function", "call_method") and name in _SUMS and len(both) == 2


def _all_pass(module: GraphModule, node: Node) -> bool:
    """Whether no way leads from an input to the output around a node."""
    reached: set[Node] = set()
    for other in module.graph.nodes:
        if other is not node and (other.op == "placeholder" or any(n in reached for n in other.all_input_nodes)):
            reached.add(other)
    return not any(other.op == "output" for other in reached)


class _Watched:
    """A model that shows the values at some of its places as it runs."""

    def __init__(self, module: GraphModule, wanted: Iterable[str], device: torch.device):
        self.device, self.module = device, observed(module, device)
        known = places(self.module)
        self.nodes = {known[name]: name for name in wanted}
        self.axes = {name: channel_axis(self.module, node) for node, name in self.nodes.items()}

    def look(self, inputs: tuple[Tensor, ...], take: Callable[[str, Tensor, Tensor], None]) -> Tensor:
        """Run a batch; `take` gets the name of a place, its value on the grid, and the input, which comes back as well."""
        inputs = tuple(x.to(self.device) for x in inputs)
        target = shrunk(inputs[0].float())

        def taken(node: Node, value: Tensor) -> None:
            if (name := self.nodes.get(node)) is not None:
                if value.is_complex() or value.ndim == 0 or len(value) != len(target):
                    kind = (
                        "complex numbers" if value.is_complex() else f"the shape {tuple(value.shape)} for {len(target)} samples"
                    )
                    raise UnsupportedModel(
                        f"{name} has {kind}; the probe needs real values, a row for each sample. Leave --probe out."
                    )
                take(name, on_grid(value, self.axes[name], target.shape[2:]), target)

        with torch.no_grad():
            _Showing(self.module, taken).run(*inputs)
        return target


class _Showing(Interpreter):
    """Runs a graph and shows each value at once, since what follows may work in place."""

    def __init__(self, module: GraphModule, show: Callable[[Node, Any], None]):
        super().__init__(module)
        self.show = show

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        self.show(n, value)
        return value


def _geometries(artifact: Artifact, context: Context) -> dict[str, Geometry]:
    """How each place of a model lies over the input."""
    hows: dict[str, Geometry] = {}

    def look(name: str, value: Tensor, target: Tensor) -> None:
        hows[name] = geometry(value, target)

    model = _Watched(artifact.module, places(artifact.module), context.device)
    if not model.nodes:
        raise UnsupportedModel(
            "There is no activation or sum that everything passes, so there is nothing to probe. 'compress analyze' without "
            "--probe looks at each layer by itself."
        )
    model.look(next(replace(context.calibration, images=STATISTICS).inputs()), look)
    return hows


def _refuse_tokens(module: GraphModule) -> None:
    """A table that is looked up by the input: a decoder would have to give numbers that name tokens."""
    read: set[Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder" or (node.op != "call_module" and any(n in read for n in node.all_input_nodes)):
            read.add(node)
        part = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(part, nn.Embedding) and any(n in read for n in node.all_input_nodes):
            raise BadInput(
                f"The model looks its input up in a table ({node.target}); the probe needs inputs that are values, such as "
                "images. Leave --probe out."
            )
