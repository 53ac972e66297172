"""One model file in a process of its own, which times calls when it is told to (exporters/standalone/racing.py).

Neither torch nor the package that compares is imported, so that memory is that of Python, numpy and the runtime.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from exporters import elsewhere, runtimes
from exporters.errors import ExportError
from exporters.standalone import racing


def load(order: dict[str, Any]) -> tuple[Callable[[], object], dict[str, Any]]:
    """Open a file in the runtime that `order` names, and run it once."""
    runtimes.module(order["runtime"])  # importing it is Python's time, not the file's

    def opened() -> tuple[runtimes.Run, Any, str]:
        loaded = runtimes.load(order["runtime"], Path(order["path"]), threads=order["threads"], batch=order["batch"])
        return loaded.run, loaded.shapes or [(0, *shape) for shape in order["shapes"]], loaded.version

    return racing.prepared(order, opened)


if __name__ == "__main__":
    elsewhere.install()
    racing.serve(load, (ExportError, OSError, ValueError, MemoryError))
