"""Every operation and layer class that a class-free checkpoint may name: those of `graph/operations.py`, and what torch.fx wraps.

A name in `graph.json` is looked up here and nowhere else: no import, no attribute walk. The tables hold only what computes on
tensors and numbers. Arguments of a layer at their default are not written, so that newer and older versions of torch read each
other's files.
"""

from __future__ import annotations

import importlib
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from compress.graph import operations
from compress.graph.operations import OPERATIONS

_WRAPPED = {
    # functions that their module hides from the tracer (torch.fx.wrap); they must stay hidden when traced again
    "torchvision.models.swin_transformer": "_patch_merging_pad _get_relative_position_bias shifted_window_attention",
    "torchvision.models.video.swin_transformer": "_get_window_and_shift_size _get_relative_position_bias _compute_pad_size_3d "
    "_compute_attention_mask_3d shifted_window_attention_3d",
    "torchvision.models.video.mvit": "_unsqueeze _squeeze _add_rel_pos _add_shortcut",
    "torchvision.ops.stochastic_depth": "stochastic_depth",
    "torchvision.ops.drop_block": "drop_block2d drop_block3d",
}
_NAMED_OUTPUTS = {"torchvision.models.googlenet": "GoogLeNetOutputs", "torchvision.models.inception": "InceptionOutputs"}

ATTRIBUTES = frozenset(
    {"shape", "dtype", "device", "ndim", "T", "mT", "H", "mH", "is_cuda", "requires_grad", "real", "imag", *operations.RESULTS}
)
"""What `getattr` may read from a tensor, or from the values and places that an operation gives."""

METHODS = frozenset(name for row in OPERATIONS for name in row.methods.split() if hasattr(torch.Tensor, name))
"""Tensor methods; all of them compute, none reads or writes files, registers hooks or runs a callback."""
_MATH = "ceil cos exp floor isfinite isinf isnan log log2 pow prod sin sqrt tanh trunc"


def _from(prefix: str, owner: object, names: Iterable[str]) -> dict[str, Callable[..., Any]]:
    # some versions of torch lack a name
    return {f"{prefix}.{name}": getattr(owner, name) for name in names if hasattr(owner, name)}


def _words(column: str) -> list[str]:
    """All names in a column of the table of operations, in the order of the alphabet."""
    return sorted(name for row in OPERATIONS for name in getattr(row, column).split())


def _from_modules(table: dict[str, str]) -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    for module, names in table.items():
        found |= _from(module, importlib.import_module(module), names.split())
    return found


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **_from("torch", torch, _words("torch")),
    **_from("F", F, _words("functional")),
    **_from("operator", operator, _words("operator")),
    **_from("linalg", torch.linalg, _words("linalg")),
    **_from("fft", torch.fft, _words("fft")),
    **_from("math", math, _MATH.split()),
    **_from_modules(_WRAPPED),
    **_from_modules(_NAMED_OUTPUTS),
    "getattr": getattr,
    "len": len,
}
"""Name in graph.json -> function. `getattr` is further held to ATTRIBUTES."""

WRAPPED = frozenset(_from_modules(_WRAPPED)) | {"len"}
"""Functions whose nodes carry torch.fx's mark for wrapped functions."""

# reversed, so that the first of two names is written last and stays.
FUNCTION_NAMES: dict[Callable[..., Any], str] = {function: name for name, function in reversed(FUNCTIONS.items())}
"""Function -> name; of two names for one function the first in FUNCTIONS wins."""

LAYERS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    name: (kind, tuple(row.fields.split())) for row in operations.LAYERS for name, kind in operations.classes(row).items()
}
"""Name in graph.json -> (layer class, constructor arguments to recover)."""

LAYER_NAMES: dict[type[nn.Module], str] = {kind: name for name, (kind, _) in LAYERS.items()}


def recover(layer: nn.Module, field: str) -> tuple[str, Any]:
    """Name and value of one constructor argument, read from the layer's attributes."""
    if "<" in field:
        argument, attribute = field.split("<")
        return argument, len(getattr(layer, attribute))
    if "?" in field:
        argument, attribute = field.split("?")
        return argument, _is_there(getattr(layer, attribute or argument))
    return field, getattr(layer, field)


def _is_there(value: object) -> bool:
    # Tensors have no truth value, hence the test for None.
    # recurrent layers keep the flag itself, the others the tensor or None
    return value if isinstance(value, bool) else value is not None


def build(kind: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A layer of the table on the meta device: no memory, no initialization.

    Raises:
        ValueError: unknown class or argument, or what the constructor itself refuses.
    """
    if kind not in LAYERS:
        raise ValueError(f"layer class {kind!r} is not known")
    cls, fields = LAYERS[kind]
    known = {re.split("[?<]", field)[0] for field in fields}
    if unknown := set(arguments) - known:
        raise ValueError(f"{kind} has no argument {min(unknown)!r}")
    # Each costs a module and its weights' entries, even on the meta device.
    if arguments.get("num_layers", 1) > 1000:
        raise ValueError("more than 1000 recurrent layers")
    with torch.device("meta"):
        return cls(**arguments)
