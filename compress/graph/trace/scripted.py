"""Functions that `torch.jit.script` has compiled are gone through as the Python that they were made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def as_python() -> Iterator[None]:
    """While it is open, compiled functions run their Python code, which torch keeps beside them."""
    kind: Any = torch.jit.ScriptFunction
    compiled = kind.__call__

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        python = getattr(function, "_torchdynamo_inline", None)
        return compiled(function, *args, **kwargs) if python is None else python(*args, **kwargs)

    kind.__call__ = call
    try:
        yield
    finally:
        kind.__call__ = compiled
