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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from compress.entropy.moments import Moments
from compress.entropy.ridge import RIDGE, ridge
from compress.refit import norms
from compress.refit.tape import Tape, order, sum_behind
from compress.statistics.layers import Layer, columns, from_matrix, layers

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
    batches: Sequence[tuple[Tensor, ...]],
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
    generator = torch.Generator().manual_seed(seed)
    known = {name: one for one in layers(dense).values() for name in one.nodes}
    tapes = Tape(dense, batches, device), Tape(small, batches, device)
    walk = _Walk(dense, small, layers(small), kept, *tapes, generator, sequential)
    errors: dict[str, float] = {}
    exact: list[str] = []
    recalibrated: list[str] = []
    changed: set[str] = set()  # nodes with other values than in the dense model
    stale: set[str] = set()  # those that lost inputs on the way and were not repaired since
    names = order(dense)
    for turn, name in enumerate(names):
        one, node = known.get(name), walk.of_dense.nodes[name]
        reads = {source.name for source in node.all_input_nodes}
        # The dense value is always needed: as a target, and as what later calls read.
        walk.of_dense.compute(name)
        if one is not None and one.path not in walk.met:
            walk.met.add(one.path)
            sources = {s.name for call in one.nodes for s in walk.of_dense.nodes[call].all_input_nodes}
            # The same inputs and the same columns: the layer gives what it gave, and a refit could only blur it.
            if not sources & changed and _columns_of(dense, one) == _columns_of(small, one):
                exact.append(one.path)
            elif (only is None or one.path in only) and (error := walk.fit(one)) is not None:
                errors[one.path] = error
        fitted, less = one is not None and one.path in errors, norms.reads_less(dense, small, node)
        # What reads something stale stays stale until a layer is refitted.
        if not fitted and (less or reads & stale):
            stale.add(name)
            if (norm := norms.running(small, node)) is not None:
                norms.recalibrate(norm, walk.of_small.values[node.all_input_nodes[0].name])
                recalibrated.append(str(node.target))
        # After the fit, so that what follows sees the new weights.
        walk.of_small.compute(name)
        walk.of_dense.release(name)
        walk.of_small.release(name)
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
    generator: torch.Generator
    sequential: bool
    met: set[str] = field(default_factory=set)

    def fit(self, one: Layer) -> float | None:
        """Refit one layer of the smaller model; its relative error, None where there is nothing to compare its outputs with."""
        layer: Any = self.small.get_submodule(one.path)
        moments = Moments(int(getattr(layer, "groups", 1)))
        each = [math.prod(self.of_dense.nodes[call].meta["shape"]) // one.outputs for call in one.nodes]  # of one sample
        share = _share(one, self.kept[one.path], sum(each) * self.of_dense.samples)
        with torch.no_grad():
            for call in one.nodes:
                self._add(one, call, share, moments)
        if not moments.rows:
            return None
        fitted = ridge(moments, ridge=RIDGE)
        write(layer, fitted.weight, fitted.bias)
        return fitted.error

    def _add(self, one: Layer, call: str, share: float, moments: Moments) -> None:
        """Rows and targets of one call, batch by batch."""
        node = self.of_dense.nodes[call]
        source = node.all_input_nodes[0].name
        behind = sum_behind(self.dense, node)
        other = behind[1].name if behind is not None else ""
        # Whether the sum's other operand is known on both sides: then the block repairs the stream.
        stream = self.sequential and other in self.of_small.values and other in self.of_dense.values
        kept, own = self.kept[one.path], self.own[one.path]
        inputs = self.of_small.values[source] if self.sequential and source in self.of_small.values else None
        for i, found in enumerate(self.of_dense.ahead([call, source])):
            y = found[call]
            at = one.places(y, max(1, round(share * y.numel() / one.outputs)), self.generator)
            # "original" takes the dense inputs; a later call through the layer itself has no small ones yet.
            seen = found[source] if inputs is None else inputs[i]
            there = one.counterpart(at, found[source], own, seen)
            if there is None:
                return
            target = one.targets(y, at)
            if stream:
                # Dense sum minus the smaller model's stream: what this layer must give (docstring).
                target = target + one.targets(self.of_dense.values[other][i], at)
            target = target[:, kept.outputs]
            if stream:
                target = target - one.targets(self.of_small.values[other][i], there)
            x = own.rows(seen, there)
            moments.add(x if inputs is not None else x[:, _columns(one, own, kept)], target)


def write(layer: Any, weight: Tensor, bias: Tensor) -> None:
    """Put fitted weights, a row per output, into a layer; it gets a bias where it had none."""
    with torch.no_grad():
        layer.weight.copy_(from_matrix(layer, weight))
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.empty(len(bias), device=layer.weight.device))
        layer.bias.copy_(bias)


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
