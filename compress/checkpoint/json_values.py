"""Arguments of nodes and layers as JSON values, and back.

Numbers, strings, booleans, None and lists stand for themselves. Everything else is an object with one key, its kind:
{"node": "conv1"}, {"tuple": [...]}, {"size": [...]}, {"dict": [[key, value], ...]}, {"slice": [start, stop, step]},
{"float": "inf"}, {"dtype": "float32"}, {"device": "cpu"}, {"memory_format": "channels_last"}, {"ellipsis": true}.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch.fx import Node

MAX_DEPTH = 16
MAX_STRING = 512
MAX_ITEMS = 100_000
_INTEGERS = range(-(2**63), 2**63)  # larger ones are no sizes
_DEVICE = re.compile(r"(cpu|cuda|mps)(:\d{1,3})?")  # only devices that exist; a string goes no further


class InvalidValue(ValueError):
    """A value that has no place in a stored graph."""


def encode(value: Any) -> Any:
    """A JSON value.

    Raises:
        InvalidValue: of a type that cannot be stored.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float) and math.isnan(value):
        raise InvalidValue("NaN is no number that a layer or an operation can have")
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": str(value)}  # JSON has no infinity
    if isinstance(value, Node):
        return {"node": value.name}
    # Before tuple, which torch.Size is.
    if isinstance(value, torch.Size):
        return {"size": [encode(v) for v in value]}
    if isinstance(value, tuple):
        return {"tuple": [encode(v) for v in cast(tuple[Any, ...], value)]}
    if isinstance(value, list):
        return [encode(v) for v in cast(list[Any], value)]
    if isinstance(value, dict):
        return {"dict": [[encode(k), encode(v)] for k, v in cast(dict[Any, Any], value).items()]}
    if isinstance(value, slice):
        span = cast("slice[Any, Any, Any]", value)
        return {"slice": [encode(span.start), encode(span.stop), encode(span.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    for kind, cls in (("dtype", torch.dtype), ("memory_format", torch.memory_format), ("device", torch.device)):
        if isinstance(value, cls):
            return {kind: str(value).removeprefix("torch.")}
    raise InvalidValue(f"{torch.typename(value)} {str(value)[:80]!r}")


def decode(value: Any, nodes: Mapping[str, Node], depth: int = 0) -> Any:
    """The value that `encode` wrote; nodes are looked up by name, so only earlier ones can be meant.

    Raises:
        InvalidValue: not such a value, too deep, too long, or a node that is not there.
    """
    # Deeper ones would end in Python's recursion limit.
    if depth > MAX_DEPTH:
        raise InvalidValue(f"nested deeper than {MAX_DEPTH}")
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        if value not in _INTEGERS:
            raise InvalidValue("an integer of more than 64 bits")
        return value
    if isinstance(value, str):
        if len(value) > MAX_STRING:
            raise InvalidValue(f"a string of more than {MAX_STRING} characters")
        return value
    if isinstance(value, list):
        return _items(cast(list[Any], value), nodes, depth)
    pairs = list(cast(dict[str, Any], value).items()) if isinstance(value, dict) else []
    if len(pairs) != 1:
        raise InvalidValue(f"{str(cast(object, value))[:80]!r} is of no known kind")
    return _decode_kind(*pairs[0], nodes, depth)


def _items(values: object, nodes: Mapping[str, Node], depth: int) -> list[Any]:
    if not isinstance(values, list) or len(cast(list[Any], values)) > MAX_ITEMS:
        raise InvalidValue(f"not a list of at most {MAX_ITEMS} values")
    return [decode(v, nodes, depth + 1) for v in cast(list[Any], values)]


def _decode_kind(kind: str, body: Any, nodes: Mapping[str, Node], depth: int) -> Any:
    if kind == "node" and isinstance(body, str) and body in nodes:
        return nodes[body]
    if kind == "tuple":
        return tuple(_items(body, nodes, depth))
    if kind == "size":
        return torch.Size(_items(body, nodes, depth))
    if kind == "slice":
        start, stop, step = _items(body, nodes, depth)
        return slice(start, stop, step)
    if kind == "dict":
        return dict(_items(body, nodes, depth))
    # NaN makes everything behind it no number, and compares as equal to nothing: no network has it as a setting.
    if kind == "float" and body in ("inf", "-inf"):
        return float(body)
    if kind == "ellipsis":
        return Ellipsis
    if kind == "device" and isinstance(body, str) and _DEVICE.fullmatch(body):
        return torch.device(body)
    if kind == "dtype" and isinstance(found := getattr(torch, str(body), None), torch.dtype):
        return found
    if kind == "memory_format" and isinstance(found := getattr(torch, str(body), None), torch.memory_format):
        return found
    raise InvalidValue(f"{kind} {str(body)[:80]!r} is not known")
