"""ONNX Runtime on the CPU.

Threads do not spin between calls: where several sessions take turns, the spinning ones take the cores of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from exporters.errors import ExportError, first_line
from exporters.runtimes import Loaded
from exporters.standalone import inference, machine


def load(path: Path | bytes, *, threads: int = 0, batch: int = 0) -> Loaded:
    """See `exporters.runtimes.load`; takes the bytes of a file as well."""
    name = path if isinstance(path, Path) else "the graph"
    try:
        session = inference.session(path, threads or machine.cores(), batch)
    except Exception as error:
        raise ExportError(f"ONNX Runtime {onnxruntime.__version__} does not open {name}: {first_line(error)}") from error
    names = [i.name for i in session.get_inputs()]
    shapes = tuple(tuple(size if isinstance(size, int) else 0 for size in i.shape) for i in session.get_inputs())

    def run(arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        try:
            return session.run(None, dict(zip(names, arrays, strict=True)))
        except Exception as error:
            sizes = " and ".join(str(array.shape) for array in arrays)
            raise ExportError(f"ONNX Runtime cannot run {name} on inputs of shape {sizes}: {first_line(error)}") from error

    return Loaded(run, shapes, onnxruntime.__version__)
