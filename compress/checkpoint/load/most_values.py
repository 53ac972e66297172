"""A constructor that is told sizes by somebody else's file makes no more values than the weights that it is for could fill."""

from __future__ import annotations

import math
import re
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

SPARE, TIMES = 2**26, 8
"""Values that any architecture may make, and times as many as its weights have: temporaries of its first weights included."""
TENSORS = 100_000
"""How many tensors it may make: a thousand layers have some ten thousand."""
LARGEST, CLASSES, LAYERS = 2 * 10**7, 10**6, 10**4
"""Of a whole number among the arguments, of one that counts (`num_labels`), and of one that counts or multiplies layers: what is
made by it, as a list of Python's, is there before it is counted."""
_LAYERS = re.compile("^(?!.*vocab).*(layer|depth|block|types|mult|coefficient)")
_SIZING_NOTHING = ("theta",)  # of rotary positions, 10**9 in some networks
SECONDS, A_SECOND = 30, 10**7
"""How long making an architecture may take, and a second more for so many values."""

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


def _inside(value: Any) -> Iterator[Any]:
    """A value, or what is in a list at any depth."""
    if isinstance(value, list | tuple):
        for one in cast("Iterable[Any]", value):
            yield from _inside(one)
    else:
        yield value


def beyond(arguments: Mapping[str, Any]) -> str:
    """The first argument with a number in it, at any depth, that no network has; empty where there is none."""
    for key, value in arguments.items():
        name = str(key)  # in Python a table may have others
        of_layers = _LAYERS.search(name) is not None
        most = LAYERS if of_layers else CLASSES if name.startswith("num_") else LARGEST
        sizes = not name.endswith(_SIZING_NOTHING)
        for one in _inside(value):
            if isinstance(one, dict):
                if within := beyond(cast("dict[str, Any]", one)):
                    return within
            # Floats elsewhere are rates and scales.
            elif sizes and isinstance(one, int | float if of_layers else int) and abs(one) > most:
                return name
    return ""


@contextmanager
def in_time(values: int) -> Generator[None]:
    """Ended with `TooMany` where it takes far longer than making so many values does; for the main thread, where that can be."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    seconds = SECONDS + values / A_SECOND

    def over(*_: object) -> None:
        raise TooMany(f"it takes longer than {seconds:.0f} s to make")

    handler, start = signal.signal(signal.SIGALRM, over), time.monotonic()
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)  # None: one that C has set
        if left:  # somebody else's alarm
            signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - start), 1e-3))


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


@contextmanager
def bounded(values: int) -> Generator[None]:
    """Making an architecture for weights of so many values: neither far more of them, nor far longer than that takes."""
    with MostValues(values), in_time(values):
        yield
