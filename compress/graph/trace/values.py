"""What a forward has in its hands: tensors in nested values, and which methods write into their tensor."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

from torch import Tensor

from compress.graph.trace.lines import Unrecorded


def writes(name: str) -> bool:
    """Whether a method of this name changes its tensor."""
    return name in _INTO or (name.endswith("_") and not name.endswith("__"))


_INTO = frozenset({"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__"})


def plain_name(name: str) -> str:
    """The operation that makes a new tensor of what one of this name writes: `add` for `add_` and `__iadd__`."""
    return name[3:-2] if name in _INTO else name.rstrip("_")


def same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor in nested tuples, lists, dictionaries and slices."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [t for part in cast(tuple[Any, ...], value) for t in tensors_in(part)]
    if isinstance(value, dict):
        return [t for part in cast(dict[Any, Any], value).values() for t in tensors_in(part)]
    return tensors_in((value.start, value.stop, value.step)) if isinstance(value, slice) else []


def of_fields(output: Any) -> dict[str, Any] | None:
    """The fields of a data class by name; None for anything else."""
    kind = type(output)  # not its __class__: what stands for a value has to find that out first
    if not dataclasses.is_dataclass(kind) or issubclass(kind, dict | tuple):
        return None
    return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}


def plain_output(output: Any) -> Any:
    """Tensors in plain tuples, lists and dictionaries; entries of an output class without one are left out."""
    if (fields := of_fields(output)) is not None:
        return plain_output(fields)
    if isinstance(output, dict):
        parts = cast(dict[str, Any], output)
        return {str(k): plain_output(v) for k, v in parts.items() if _holds(v) or isinstance(v, dict)}
    if isinstance(output, tuple | list):
        parts = [plain_output(v) for v in cast(tuple[Any, ...], output) if _holds(v)]
        return parts if isinstance(output, list) else tuple(parts)
    if not isinstance(output, Tensor):
        needed = "needed are tensors, or tuples, lists or dictionaries of tensors"
        raise Unrecorded(f"its output is a {type(output).__name__}; {needed}")
    return output


def _holds(value: Any) -> bool:
    return bool(tensors_in(value)) or of_fields(value) is not None
