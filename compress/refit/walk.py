"""Every layer of a smaller model refitted, in the order of the graph, to what the dense model does.

    inputs    what reaches the layer in the smaller model ("sequential"), or the dense one's same channels ("original")
    target    the dense output of the channels that stay. Where the output runs straight into a sum whose other operand is known:
              the dense sum minus that operand *as the smaller model computes it*: each block also repairs the stream's error

A layer that still gets the dense model's inputs is exact already and is left alone. The last linear layer thereby is refitted
to the dense logits. Norms are folded for the time (see `graph.merge.batch_norm`).

A layer that is called several times is fitted once, at the first of its calls, to the rows of all of them. What reaches a later
call through the layer itself is not known by then, and taken from the dense model. Norms behind what lost inputs and cannot be
refitted get new statistics (see `refit.norms`).

Where padding has moved to an earlier layer, outputs are larger by a border on each side; a position is compared with the one that
it was before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from compress.entropy.moments import Moments
from compress.entropy.ridge import RIDGE, ridge
from compress.refit import norms
from compress.refit.inputs import Images
from compress.refit.inputs import of as images_of
from compress.refit.tape import Tape, is_layer, order, sum_behind
from compress.statistics.layers import Layer, columns, from_matrix, layers
from compress.statistics.portions import Drawn

# Bounds the time of wide layers; below it `_ROWS` decides.
_WORK = 2e11  # multiply-adds that one layer's moments may take
_ROWS = 64  # rows per input column at most


@dataclass(frozen=True)
class Kept:
    """Positions of a dense layer that are left: outputs, and inputs within a group."""

    outputs: Tensor
    inputs: Tensor


@dataclass(frozen=True)
class Refitted:
    """What happened: relative error of each refitted layer on its own rows, layers left exact, norms with new statistics."""

    errors: Mapping[str, float]
    exact: tuple[str, ...]
    recalibrated: tuple[str, ...] = ()


def refit(
    dense: GraphModule,
    small: GraphModule,
    kept: Mapping[str, Kept],
    batches: Images | Sequence[tuple[Tensor, ...]],
    *,
    device: torch.device,
    seed: int = 0,
    sequential: bool = True,
    only: Sequence[str] | None = None,
    progress: Callable[[float, str], None] = lambda share, detail: None,
) -> Refitted:
    """Refit `small` in place.

    Args:
        dense: folded dense model, on `device`.
        small: folded smaller model of the same graph, on `device`.
        kept: by module path, for every layer of `layers(dense)`.
        batches: calibration inputs, on `device`.
        device: where it runs.
        seed: of the sampled positions.
        sequential: where a layer's inputs come from.
        only: paths to refit; all by default.
        progress: told the share done and the layer.
    """
    drawn, names, batches = Drawn(seed), order(dense), images_of(batches)
    known = {name: one for one in layers(dense).values() for name in one.nodes}
    tapes = Tape(dense, names, batches), Tape(small, names, batches)
    walk = _Walk(dense, small, layers(small), kept, *tapes, drawn, sequential)
    errors: dict[str, float] = {}
    exact: list[str] = []
    recalibrated: list[str] = []
    changed: set[str] = set()  # nodes with other values than in the dense model
    stale: set[str] = set()  # those that lost inputs on the way and were not repaired since
    for turn, name in enumerate(names):
        one, node = known.get(name), walk.of_dense.nodes[name]
        reads = {source.name for source in node.all_input_nodes}
        if one is not None and one.path not in walk.met:
            walk.met.add(one.path)
            sources = {s.name for call in one.nodes for s in walk.of_dense.nodes[call].all_input_nodes}
            # The same inputs and the same columns: the layer gives what it gave, and a refit could only blur it.
            if not sources & changed and _columns_of(dense, one) == _columns_of(small, one):
                exact.append(one.path)
            elif (only is None or one.path in only) and (error := walk.fit(one, turn)) is not None:
                errors[one.path] = error
        fitted, less = one is not None and one.path in errors, norms.reads_less(dense, small, node)
        # What reads something stale stays stale until a layer is refitted.
        if not fitted and (less or reads & stale):
            stale.add(name)
            if (norm := norms.running(small, node)) is not None:
                norms.recalibrate(norm, walk.small_values(node.all_input_nodes[0].name, turn), batches.ranks)
                recalibrated.append(str(node.target))
        if fitted or less or reads & changed or _replaced(dense, small, node):
            changed.add(name)
        progress((turn + 1) / len(names), name)
    return Refitted(errors, tuple(exact), tuple(recalibrated))


@dataclass
class _Walk:
    """Both models at the same node."""

    dense: GraphModule
    small: GraphModule
    own: Mapping[str, Layer]  # those of the smaller model
    kept: Mapping[str, Kept]
    of_dense: Tape
    of_small: Tape
    drawn: Drawn
    sequential: bool
    met: set[str] = field(default_factory=set)

    def fit(self, one: Layer, turn: int) -> float | None:
        """Refit one layer of the smaller model; its relative error, None where there is nothing to compare its outputs with."""
        layer: Any = self.small.get_submodule(one.path)
        moments, images = Moments(int(getattr(layer, "groups", 1))), self.of_dense.images
        each = [math.prod(self.of_dense.nodes[call].meta["shape"]) // one.outputs for call in one.nodes]  # of one sample
        share = _share(one, self.kept[one.path], sum(each) * images.samples)
        few = sum(each) * images.samples < one.inputs  # rows so few that they stay rows
        beyond = self._beyond(one, turn)
        with torch.no_grad():
            for number, call in enumerate(one.nodes):
                fits = True
                for part in range(len(images)):
                    # The first pass takes both models to their new places; the values of later calls are looked ahead for.
                    dense, small = self.of_dense.reach(part, max(turn + 1, self.of_dense.done)), self.of_small.reach(part, turn)
                    seen = self.of_dense.ahead(dense, self._reads(call)), small
                    fits = fits and self._add(one, call, share, moments, part, turn, *seen)
                    if images.ends_lane(part) and not few:
                        moments.settle()
                    if number == 0:
                        self.of_small.hold(part, small, turn)
                        self.of_dense.hold(part, self.of_dense.further(dense, turn + 1, beyond), beyond)
        moments.join(images.ranks, layer.weight.device)
        if not moments.rows:
            return None
        fitted = ridge(moments, ridge=RIDGE)
        write(layer, fitted.weight, fitted.bias)
        return fitted.error

    def small_values(self, name: str, turn: int) -> Iterator[Any]:
        """What a node in front of this one gives in the smaller model, part by part."""
        for part in range(len(self.of_small.images)):
            values = self.of_small.reach(part, turn)
            self.of_small.hold(part, values, turn)
            yield values[name]

    def _reads(self, call: str) -> list[str]:
        """A call and the node that it reads."""
        return [call, self.of_dense.nodes[call].all_input_nodes[0].name]

    def _beyond(self, one: Layer, turn: int) -> int:
        """The place that the dense model goes on to: in front of the next layer, which reads less where something pools."""
        after = turn + 1
        names, nodes = self.of_dense.names, self.of_dense.nodes
        while len(one.nodes) == 1 and after < len(names) and not is_layer(self.dense, nodes[names[after]]):
            after += 1
        return max(after, self.of_dense.done)

    def _add(
        self,
        one: Layer,
        call: str,
        share: float,
        moments: Moments,
        number: int,
        turn: int,
        dense: dict[str, Any],
        small: dict[str, Any],
    ) -> bool:
        """Rows and targets of one call for one part of the images; whether there are any."""
        _, source = self._reads(call)
        behind = sum_behind(self.dense, self.of_dense.nodes[call])
        other = behind[1].name if behind is not None else ""
        # Whether the sum's other operand is known on both sides: then the block repairs the stream.
        stream = self.sequential and other in small and self.of_dense.at[other] < turn
        kept, own, part = self.kept[one.path], self.own[one.path], self.of_dense.images.parts[number]
        y = dense[call]
        rows = max(1, round(share * y.numel() / one.outputs * (part.whole / part.images)))
        at = self.drawn.places(one, call, y, rows, part)
        # "original" takes the dense inputs; a later call through the layer itself has no small ones yet.
        sequential = self.sequential and source in small and self.of_small.at[source] < turn
        seen = small[source] if sequential else dense[source]
        there = one.counterpart(at, dense[source], own, seen)
        if there is None:
            return False
        target = one.targets(y, at)
        if stream:
            # Dense sum minus the smaller model's stream: what this layer must give (docstring).
            target = target + one.targets(dense[other], at)
        target = target[:, kept.outputs]
        if stream:
            target = target - one.targets(small[other], there)
        x = own.rows(seen, there)
        moments.add(x if sequential else x[:, _columns(one, own, kept)], target)
        return True


def write(layer: Any, weight: Tensor, bias: Tensor) -> None:
    """Put fitted weights, a row per output, into a layer; it gets a bias where it had none."""
    # New parameters: the old ones may be those of the model that was not fitted.
    there, fixed = layer.weight.device, layer.weight.requires_grad
    layer.weight = nn.Parameter(from_matrix(layer, weight).to(there).contiguous(), fixed)
    layer.bias = nn.Parameter(bias.to(there), fixed)


def _share(one: Layer, kept: Kept, positions: int) -> float:
    """Share of all output positions that is looked at."""
    inputs = one.window.taps * len(kept.inputs)
    rows = min(_ROWS * inputs, _WORK / (inputs * (inputs + len(kept.outputs))))
    # At least some rows per column for a usable Gram matrix, and 20,000 where there are as many.
    return min(1.0, max(rows, 4.0 * inputs, 20_000.0) / max(positions, 1))


def _columns(one: Layer, own: Layer, kept: Kept) -> Tensor:
    """Columns left of a dense input's rows, in the smaller layer's window: some groups with all inputs, or some inputs of
    all groups.
    """
    taps, groups = own.window.taps, torch.unique(kept.outputs.div(one.outputs // one.groups, rounding_mode="floor"))
    inside = (kept.inputs[:, None] * taps + torch.arange(taps)).flatten()
    return (groups[:, None] * (one.inputs // one.window.taps * taps) + inside).flatten()


def _replaced(dense: nn.Module, small: nn.Module, node: Node) -> bool:
    """Whether the node does not do what it did in the dense model: an affine function in place of an activation, padding that
    has moved.
    """
    if node.op != "call_module":
        return False
    before, now = (m.get_submodule(str(node.target)) for m in (dense, small))
    return type(before) is not type(now) or getattr(before, "padding", None) != getattr(now, "padding", None)


def _columns_of(module: nn.Module, one: Layer) -> int:
    return columns(module.get_submodule(one.path))
