"""A constructor that is told sizes by somebody else's file makes no more values than the weights that it is for could fill."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SPARE, TIMES = 2**26, 8
"""Values that any architecture may make, and times as many as its weights have: temporaries of its first weights included."""
TENSORS = 100_000
"""How many tensors it may make: a thousand layers have some ten thousand."""
LARGEST = 10**7
"""Of a whole number among the arguments: what is made by it is there before it is counted."""


_MAKERS = frozenset(f"aten::{name}" for name in ("empty", "zeros", "ones", "full", "rand", "randn"))


class TooMany(Exception):
    """More values than that."""


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
        if func._schema.name in _MAKERS and all(isinstance(n, int) for n in sizes) and math.prod(sizes) > self.left:
            raise TooMany(f"it makes more than {self.most} values")
        made = call(*args, **(kwargs or {}))
        # What an operation writes in place, or looks at in another shape, is no new tensor.
        new = isinstance(made, Tensor) and made.device.type != "meta" and func._schema.returns[0].alias_info is None
        self.left -= made.numel() if new else 0
        self.tensors += new
        if self.left < 0 or self.tensors > TENSORS:
            raise TooMany(f"it makes more than {self.most} values" if self.left < 0 else f"it makes more than {TENSORS} tensors")
        return made
