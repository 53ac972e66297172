"""Every layer of a smaller model refitted, in the order of the graph, to what the dense model does.

    inputs    what reaches the layer in the smaller model ("sequential"), or the dense one's same channels ("original")
    target    the dense output of the channels that stay. Where the output runs straight into a sum whose other operand is known:
              the dense sum minus that operand *as the smaller model computes it*: each block also repairs the stream's error

A layer that still gets the dense model's inputs is exact already and is left alone. The last linear layer thereby is refitted
to the dense logits. Norms are folded for the time (see `graph.fold`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.entropy.moments import Moments
from compress.entropy.refit import RIDGE, ridge
from compress.statistics.layers import Layer, layers
from compress.statistics.tape import Tape, order, sum_behind

_WORK = 2e11  # multiply-adds that one layer's moments may take
_ROWS = 64  # rows per input column at most


@dataclass(frozen=True)
class Kept:
    """Positions of a dense layer that are left: outputs, and the inputs of its weight's second axis."""

    outputs: Tensor
    inputs: Tensor


@dataclass(frozen=True)
class Refitted:
    """What happened: relative error of each refitted layer on its own rows, and the layers that stayed exact."""

    errors: Mapping[str, float]
    exact: tuple[str, ...]


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
    known = {one.node: one for one in layers(dense).values()}
    walk = _Walk(dense, small, kept, Tape(dense, batches, device), Tape(small, batches, device), generator, sequential)
    errors: dict[str, float] = {}
    exact: list[str] = []
    changed: set[str] = set()
    names = order(dense)
    for turn, name in enumerate(names):
        one = known.get(name)
        moved = any(source.name in changed for source in walk.of_dense.nodes[name].all_input_nodes)
        walk.of_dense.compute(name)
        if one is not None:
            moved = moved or _numel(dense, one) != _numel(small, one)
            if not moved:
                exact.append(one.path)
            elif (only is None or one.path in only) and (sequential or one.groups == 1):
                errors[one.path] = walk.fit(one)
        walk.of_small.compute(name)
        walk.of_dense.release(name)
        walk.of_small.release(name)
        if moved:
            changed.add(name)
        progress((turn + 1) / len(names), name)
    return Refitted(errors, tuple(exact))


@dataclass
class _Walk:
    """Both models at the same node."""

    dense: GraphModule
    small: GraphModule
    kept: Mapping[str, Kept]
    of_dense: Tape
    of_small: Tape
    generator: torch.Generator
    sequential: bool

    def fit(self, one: Layer) -> float:
        """Refit one layer of the smaller model; its relative error."""
        node = self.of_dense.nodes[one.node]
        source = node.all_input_nodes[0].name
        behind = sum_behind(self.dense, node)
        other = behind[1].name if behind is not None else ""
        stream = self.sequential and other in self.of_small.values and other in self.of_dense.values
        groups = _groups(self.small, one)
        moments = Moments(groups)
        kept = self.kept[one.path]
        with torch.no_grad():
            outputs = self.of_dense.values[one.node]
            share = _share(one, kept, sum(y.numel() for y in outputs) // one.outputs)
            for i, y in enumerate(outputs):
                at = one.places(y, max(1, round(share * y.numel() / one.outputs)), self.generator)
                target = one.targets(y, at)
                if stream:
                    target = target + one.targets(self.of_dense.values[other][i], at)
                target = target[:, kept.outputs]
                if stream:
                    target = target - one.targets(self.of_small.values[other][i], at)
                if self.sequential:
                    x = one.rows(self.of_small.values[source][i], at)
                else:
                    x = one.rows(self.of_dense.values[source][i], at)[:, _columns(kept.inputs, one)]
                moments.add(x, target)
        fitted = ridge(moments, ridge=RIDGE)
        write(self.small.get_submodule(one.path), fitted.weight, fitted.bias)
        return fitted.error


def write(layer: Any, weight: Tensor, bias: Tensor) -> None:
    """Put fitted weights into a layer; it gets a bias where it had none."""
    with torch.no_grad():
        layer.weight.copy_(weight.view_as(layer.weight))
        if layer.bias is None:
            layer.bias = nn.Parameter(torch.empty(len(bias), device=layer.weight.device))
        layer.bias.copy_(bias)


def _share(one: Layer, kept: Kept, positions: int) -> float:
    """Share of all output positions that is looked at."""
    inputs = one.window.taps * len(kept.inputs)
    rows = min(_ROWS * inputs, _WORK / (inputs * (inputs + len(kept.outputs))))
    return min(1.0, max(rows, 4.0 * inputs, 20_000.0) / max(positions, 1))


def _columns(inputs: Tensor, one: Layer) -> Tensor:
    return (inputs[:, None] * one.window.taps + torch.arange(one.window.taps)).flatten()


def _numel(module: nn.Module, one: Layer) -> int:
    weight: Any = module.get_submodule(one.path).weight
    return weight[0].numel()


def _groups(module: nn.Module, one: Layer) -> int:
    return int(getattr(module.get_submodule(one.path), "groups", 1))
