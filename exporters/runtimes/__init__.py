"""Exported files opened in their runtimes: a path in, a function of arrays out.

    loaded = runtimes.load("ort", Path("model.onnx"), threads=2)
    outputs = loaded.run([images])

Nothing here imports torch unless the runtime needs it, so that a process that loads a file holds the runtime and little else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from exporters.errors import ExportError
from exporters.optional_imports import imported
from exporters.standalone import machine

if TYPE_CHECKING:
    import numpy as np

Run: TypeAlias = "Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]"
"""A loaded file as a function: inputs in the model's order to outputs in the model's order."""


@dataclass(frozen=True)
class Runtime:
    """One runtime.

    Attributes:
        module: imported when it is asked for.
        opens: endings of the files that it opens, the one it was made for first.
        install: the line that installs it.
    """

    module: str
    opens: tuple[str, ...]
    install: str


RUNTIMES: dict[str, Runtime] = {
    "ort": Runtime("exporters.runtimes.ort", (".onnx",), "pip install onnxruntime"),
    "openvino": Runtime("exporters.runtimes.openvino", (".xml", ".onnx"), "pip install openvino"),
    "executorch": Runtime("exporters.runtimes.executorch", (".pte",), "pip install executorch"),
    "litert": Runtime("exporters.runtimes.litert", (".tflite",), "pip install ai-edge-litert"),
    "torch": Runtime("exporters.runtimes.pytorch", (".pt2", ".torchscript"), "pip install torch"),
}
"""Every runtime, a line each."""


@dataclass(frozen=True)
class Loaded:
    """A file in its runtime.

    Attributes:
        run: one call; returns when the work is done.
        shapes: of the inputs; 0 stands for a size that is free.
        version: of the runtime.
    """

    run: Run
    shapes: tuple[tuple[int, ...], ...]
    version: str


def load(runtime: str, path: Path, *, threads: int = 0, batch: int = 0) -> Loaded:
    """Open a file.

    Args:
        runtime: a name in `RUNTIMES`.
        path: the file.
        threads: threads inside an operator; 0 takes every core that the process may use.
        batch: the batch size that will be asked for, where it is known: memory is then planned once. 0 leaves it open.

    Raises:
        MissingBackend: the runtime is not installed.
        ExportError: unknown runtime, a file that is missing, or one that the runtime does not open.
    """
    opening = module(runtime)
    if not path.is_file():
        raise ExportError(f"There is no file {path}. Export the model first.")
    return opening.load(path, threads=threads or machine.cores(), batch=batch)


def module(runtime: str) -> Any:
    """The module of a runtime, imported.

    Raises:
        ExportError: unknown.
        MissingBackend: the runtime is not installed.
    """
    if runtime not in RUNTIMES:
        raise ExportError(f"There is no runtime '{runtime}'; known are {', '.join(RUNTIMES)}.")
    return imported(RUNTIMES[runtime].module, runtime, RUNTIMES[runtime].install)
