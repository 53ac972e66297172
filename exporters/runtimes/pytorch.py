"""torch itself: programs of torch.export (.pt2) and TorchScript (.torchscript), frozen."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_flatten

from exporters.errors import ExportError, first_line
from exporters.runtimes import Loaded


def load(path: Path, *, threads: int, batch: int) -> Loaded:
    """See `exporters.runtimes.load`. The number of threads is that of the process."""
    del batch  # shapes are looked at in each call
    torch.set_num_threads(threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.suffix == ".pt2":
                program = torch.export.load(path)
                module: Any = program.module()
                shapes = tuple(_sizes(program, str(name)) for name in program.graph_signature.user_inputs)
            else:
                module = torch.jit.freeze(torch.jit.load(path).eval())
                shapes = ()
    except Exception as error:
        raise ExportError(f"torch {torch.__version__} does not open {path}: {first_line(error)}") from error

    def run(arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        try:
            with torch.inference_mode():
                found = module(*map(torch.from_numpy, arrays))
        except Exception as error:
            sizes = " and ".join(str(array.shape) for array in arrays)
            raise ExportError(f"torch cannot run {path} on inputs of shape {sizes}: {first_line(error)}") from error
        return [y.numpy() for y in tree_flatten(found)[0] if isinstance(y, torch.Tensor)]

    return Loaded(run, shapes, torch.__version__)


def _sizes(program: Any, name: str) -> tuple[int, ...]:
    """Sizes of an input of a program; 0 where one is symbolic."""
    value = next(node.meta["val"] for node in program.graph.nodes if node.name == name)
    return tuple(size if isinstance(size, int) else 0 for size in value.shape)
