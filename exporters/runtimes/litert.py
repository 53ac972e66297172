"""LiteRT (.tflite) on the CPU, with XNNPACK; needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter  # pyright: ignore[reportMissingImports]

from exporters.errors import ExportError, first_line
from exporters.runtimes import Loaded

SIGNATURE = "serving_default"
"""The function that the converter writes; its inputs and outputs are numbered in the model's order."""


def load(path: Path, *, threads: int, batch: int) -> Loaded:
    """See `exporters.runtimes.load`."""
    del batch  # it stands in the file
    try:
        interpreter: Any = Interpreter(str(path), num_threads=threads)
        interpreter.allocate_tensors()
        call = interpreter.get_signature_runner(SIGNATURE)
        inputs, outputs = (numbered(of()) for of in (call.get_input_details, call.get_output_details))
        shapes = tuple(tuple(int(size) for size in call.get_input_details()[name]["shape"]) for name in inputs)
    except Exception as error:
        raise ExportError(f"LiteRT {version('ai-edge-litert')} does not open {path}: {first_line(error)}") from error

    def run(arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        try:
            found = call(**dict(zip(inputs, arrays, strict=True)))
        except Exception as error:
            sizes = " and ".join(str(array.shape) for array in arrays)
            raise ExportError(f"LiteRT cannot run {path} on inputs of shape {sizes}: {first_line(error)}") from error
        return [found[name] for name in outputs]

    return Loaded(run, shapes, version("ai-edge-litert"))


def names(path: Path) -> list[str]:
    """Of the inputs, in the model's order."""
    interpreter: Any = Interpreter(str(path))
    return numbered(interpreter.get_signature_runner(SIGNATURE).get_input_details())


def numbered(details: dict[str, Any]) -> list[str]:
    """`args_10` behind `args_9`."""
    return sorted(details, key=lambda name: int(name.rpartition("_")[2]))
