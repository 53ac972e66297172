"""ExecuTorch's portable runtime with XNNPACK (.pte). Its Python binding takes torch tensors, so torch is loaded too."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from executorch.extension.pybindings import portable_lib  # pyright: ignore[reportMissingImports]

from exporters.errors import ExportError, first_line
from exporters.runtimes import Loaded


def load(path: Path, *, threads: int, batch: int) -> Loaded:
    """See `exporters.runtimes.load`. The thread pool belongs to the process."""
    del batch  # memory was planned at export
    library: Any = portable_lib
    library._unsafe_reset_threadpool(threads)
    try:
        program: Any = library._load_for_executorch(str(path))
        meta = program.method_meta("forward")
        shapes = tuple(tuple(meta.input_tensor_meta(i).sizes()) for i in range(meta.num_inputs()))
    except Exception as error:
        raise ExportError(f"ExecuTorch {version('executorch')} does not open {path}: {first_line(error)}") from error

    def run(arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        try:
            found = program.forward(list(map(torch.from_numpy, arrays)))
        except Exception as error:
            sizes = " and ".join(str(array.shape) for array in arrays)
            raise ExportError(f"ExecuTorch cannot run {path} on inputs of shape {sizes}: {first_line(error)}") from error
        return [y.numpy() for y in found]

    return Loaded(run, shapes, version("executorch"))
