"""A constructor that is told sizes by somebody else's file makes no more values than the weights that it is for could fill."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SPARE, TIMES = 2**26, 8
"""Values that any architecture may make, and times as many as its weights have: temporaries of its first weights included."""
TENSORS = 100_000
"""How many tensors it may make: a thousand layers have some ten thousand."""
LARGEST, MOST_OF = 10**8, 10**6
"""Of a whole number among the arguments, and of one that counts layers or classes: what is made by it, as a list of Python's, is
there before it is counted."""

_MAKERS = frozenset(f"aten::{name}" for name in ("empty", "zeros", "ones", "full", "rand", "randn"))


class TooMany(Exception):
    """More values than that."""


def _spread(name: str, args: Sequence[Any]) -> int:
    """Values of what comes of tensors of these sizes together, or of one that is repeated; 0 where sizes do not say so."""
    shapes = [one.shape for one in args if isinstance(one, Tensor)]
    if name == "aten::repeat":
        return shapes[0].numel() * math.prod(args[1])
    with suppress(RuntimeError):
        return torch.broadcast_shapes(*shapes).numel() if len(shapes) > 1 else 0
    return 0


def beyond(arguments: Mapping[str, Any]) -> str:
    """The first argument with a number in it, at any depth, that no network has; empty where there is none."""

    def largest(value: Any) -> int:
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        return max([abs(value) if isinstance(value, int) else 0, *map(largest, cast("Iterable[Any]", parts))])

    for name, value in arguments.items():
        within = beyond(cast("dict[str, Any]", value)) if isinstance(value, dict) else ""
        most = MOST_OF if name.startswith("num_") or "layer" in name or "depth" in name else LARGEST
        if within or largest(value) > most:
            return within or name
    return ""


class MostValues(TorchDispatchMode):
    """Counts the values of new tensors, before anything is written into them.

    Args:
        values: of the weights.
    """

    def __init__(self, values: int):
        super().__init__()
        self.most = self.left = TIMES * values + SPARE
        self.tensors = 0

    def __torch_dispatch__(  # pyright: ignore[reportIncompatibleMethodOverride] (torch leaves it without types)
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        call: Callable[..., Any] = func
        # Of sizes alone it is known before there is memory for it.
        sizes: Any = args[0] if args and isinstance(args[0], list | tuple) else ()
        made_of = math.prod(sizes) if func._schema.name in _MAKERS and all(isinstance(n, int) for n in sizes) else 0
        if max(made_of, _spread(func._schema.name, args)) > self.left:
            raise TooMany(f"it makes more than {self.most} values")
        made = call(*args, **(kwargs or {}))
        # What an operation writes in place, or looks at in another shape, is no new tensor.
        new = isinstance(made, Tensor) and made.device.type != "meta" and func._schema.returns[0].alias_info is None
        self.left -= made.numel() if new else 0
        self.tensors += new
        if self.left < 0 or self.tensors > TENSORS:
            raise TooMany(f"it makes more than {self.most} values" if self.left < 0 else f"it makes more than {TENSORS} tensors")
        return made
