"""Milliseconds of a network as a function of its widths, learned from a runtime's own times of its operations.

    kind     what a runtime treats alike: convolutions of one kernel between pictures of two sizes, linear layers on as many rows
    time     a + b out + c in + d out in    of every layer of a kind, all four at least 0
    rest     a + e elements                 everything else: sums, activations, copies into another layout

Runtimes fuse, reorder and rename layers, so that no operation of theirs can be told from others of its kind: fitted is the sum
over a kind, of networks with widths that are drawn. Kernels work on blocks of channels: times of widths that are multiples of a
block are another function than those of all widths, and fitted apart (`multiple`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_KERNELS = {"Conv": "conv", "FusedConv": "conv", "NhwcFusedConv": "conv"}
_PRODUCTS = ("Gemm", "FusedGemm", "MatMul", "FusedMatMul")
REST = "rest"


@dataclass(frozen=True)
class Layer:
    """A layer as its time depends on it.

    Attributes:
        path: its name in the model.
        kind: which times it shares.
        elements: of its output, for each channel of it.
    """

    path: str
    kind: str
    elements: int


@dataclass(frozen=True)
class LayerTimes:
    """What layers take on one device, in one runtime.

    Attributes:
        kinds: milliseconds of a layer: (constant, per output, per input, per output and input).
        rest: of all else: milliseconds, and milliseconds per element of the layers' outputs.
        multiple: of the widths that this was fitted to.
    """

    kinds: Mapping[str, tuple[float, float, float, float]]
    rest: tuple[float, float]
    multiple: int


@dataclass(frozen=True)
class TimeBudget:
    """Milliseconds that a model may take.

    Attributes:
        times: of the device and runtime.
        ms: by these times.
        batch: samples of a call.
    """

    times: LayerTimes
    ms: float
    batch: int


def layers(module: nn.Module, inputs: Sequence[Tensor], batch: int) -> list[Layer]:
    """The convolutions and linear layers of a model in eval mode, in the order in which they run, as they are at a batch size.

    Args:
        module: the model.
        inputs: an example of each of its inputs, whose first axis is the batch.
        batch: samples of a call.
    """
    found: dict[str, Layer] = {}

    def heard(path: str, layer: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        before, after = tuple(given[0].shape), tuple(result.shape)
        if isinstance(layer, nn.Linear):
            rows = batch * math.prod(after[:-1]) // len(inputs[0])
            one = Layer(path, _linear(rows), rows)
        else:
            kind = _conv(layer.kernel_size, before[2:], after[2:], layer.groups > 1)  # type: ignore[arg-type,operator]
            one = Layer(path, kind, batch * math.prod(after[2:]))
        found.setdefault(path, one)  # a layer that is called twice counts once

    known = [(path, layer) for path, layer in module.named_modules() if isinstance(layer, (*_CONVOLUTIONS, nn.Linear))]
    hooks = [layer.register_forward_hook(partial(heard, path)) for path, layer in known]
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return list(found.values())


def _conv(kernel: Sequence[int], before: Sequence[int], after: Sequence[int], grouped: bool) -> str:
    return f"{'grouped ' if grouped else ''}conv {_size(kernel)} {_size(before)} to {_size(after)}"


def _linear(rows: int) -> str:
    return f"linear {rows}"


def _size(of: Sequence[int]) -> str:
    return "x".join(map(str, of))


def by_kind(kernels: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Milliseconds of a call by kind, from what `exporters.standalone.kernels` tells."""
    found: dict[str, float] = {}
    for kernel in kernels:
        kind = _kind(kernel)
        found[kind] = found.get(kind, 0.0) + 1e3 * float(kernel["seconds"])
    return found


def _kind(kernel: Mapping[str, Any]) -> str:
    op, inputs, outputs = kernel["op"], kernel["inputs"], kernel["outputs"]
    if op in _KERNELS and len(inputs) > 1:
        # A runtime may fill up channels, but never to twice as many as a kernel reads.
        grouped = 2 * inputs[1][1] <= inputs[0][1]
        return _conv(inputs[1][2:], inputs[0][2:], outputs[0][2:], grouped)
    # Weights have two axes, or are not told any more where the runtime has packed them; two activations have more.
    if op in _PRODUCTS and not (len(inputs) > 1 and len(inputs[1]) > 2):
        return _linear(math.prod(inputs[0][:-1]))
    return REST


def fitted(
    every: Sequence[Layer], widths: Sequence[Mapping[str, tuple[int, int]]], times: Sequence[Mapping[str, float]], multiple: int
) -> LayerTimes:
    """Fit times to networks that were timed.

    Args:
        every: layers that all of them have.
        widths: of each network: path of a layer -> its outputs, and the inputs that each of them reads.
        times: of each network: milliseconds by kind; what is no layer's kind belongs to the rest.
        multiple: of the widths.
    """
    kinds = {layer.kind for layer in every}
    found: dict[str, tuple[float, float, float, float]] = {}
    for kind in sorted(kinds):
        known = [_features([w[one.path] for one in every if one.kind == kind]) for w in widths]
        found[kind] = _least_squares(np.array(known), np.array([t.get(kind, 0.0) for t in times]))  # type: ignore[assignment]
    elements = [sum(one.elements * w[one.path][0] for one in every) for w in widths]
    rest = [sum(ms for kind, ms in t.items() if kind not in kinds) for t in times]
    constant, each = _least_squares(np.array([[1.0, e] for e in elements]), np.array(rest))
    return LayerTimes(found, (constant, each), multiple)


def _features(widths: Sequence[tuple[int, int]]) -> list[float]:
    return [
        float(len(widths)),
        float(sum(out for out, _ in widths)),
        float(sum(into for _, into in widths)),
        float(sum(out * into for out, into in widths)),
    ]


def _least_squares(known: np.ndarray, wanted: np.ndarray) -> tuple[float, ...]:
    """Coefficients of at least 0 with the least squared error: of the few columns, those sets that have no negative one."""
    scale = np.abs(known).max(0)
    scale[scale == 0] = 1.0
    columns = known / scale
    best, least = np.zeros(columns.shape[1]), float(np.square(wanted).sum())
    for size in range(1, columns.shape[1] + 1):
        for chosen in itertools.combinations(range(columns.shape[1]), size):
            found = np.linalg.lstsq(columns[:, chosen], wanted, rcond=None)[0]
            error = float(np.square(wanted - columns[:, chosen] @ found).sum())
            # A further column has to explain something: among equal ones the smallest set stays.
            if (found >= 0).all() and error < 0.999 * least:
                best, least = np.zeros(columns.shape[1]), error
                best[list(chosen)] = found
    return tuple(float(value) for value in best / scale)
