"""ONNX Runtime on the CPU.

Threads do not spin between calls: where several sessions take turns, the spinning ones take the cores of the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from exporters.errors import ExportError
from exporters.runtimes import Loaded, first_line, usable_cores


def load(path: Path | bytes, *, threads: int = 0, batch: int = 0) -> Loaded:
    """See `exporters.runtimes.load`; takes the bytes of a file as well."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads or usable_cores(), 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if batch:
        options.add_free_dimension_override_by_name("batch", batch)
    name = path if isinstance(path, Path) else "the graph"
    try:
        session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
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
