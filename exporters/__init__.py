"""Trained torch models to the formats of runtimes. A leaf: it knows torch and the runtimes, nothing of how a model was made.

    exported = exporters.export("onnx", model, inputs, "model.onnx")

A format is a module with `export(model, inputs, path, ...) -> Exported` and `versions() -> str`, and one line in
each table below.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.errors import ExportError, MissingBackend, ParityError
from exporters.exported import Availability, Exported, Parity

if TYPE_CHECKING:
    from torch import Tensor, nn

EXPORTERS: dict[str, str] = {"onnx": "exporters.onnx"}
"""Format -> module, imported when it is asked for."""

INSTALL: dict[str, str] = {"onnx": "pip install onnx onnxscript onnxruntime"}
"""Format -> the line that installs all that it needs."""

__all__ = [
    "EXPORTERS",
    "INSTALL",
    "Availability",
    "ExportError",
    "Exported",
    "MissingBackend",
    "Parity",
    "ParityError",
    "available",
    "export",
]


def export(
    format: str,
    model: nn.Module,
    inputs: Sequence[Tensor],
    path: str | PathLike[str],
    *,
    metadata: Mapping[str, str] | None = None,
    samples: Iterable[Sequence[Tensor]] | None = None,
    **options: Any,
) -> Exported:
    """Write `model` to `path` in a format, and prove the file equal to the model. The model is not changed.

    Args:
        format: a name in `EXPORTERS`.
        model: any torch module; exported as in eval mode.
        inputs: example inputs, (batch, ...) each; only shapes matter unless `samples` is None.
        path: the file; its folder is made. Written under another name first: it is whole or absent.
        metadata: written into the file where the format has a place for it.
        samples: batches of real inputs for the parity check; None takes `inputs`.
        options: of the format (`opset` for onnx).

    Raises:
        ExportError: unknown format, a model that the format cannot hold, or a path that cannot be written.
        MissingBackend: a package is missing; says which and how to install it.
        ParityError: the file computes something else.
    """
    return _module(format).export(model, inputs, Path(path), metadata=metadata or {}, samples=samples, **options)


def available() -> dict[str, Availability]:
    """For every format, whether it works here; otherwise what is missing and the pip line that brings it."""
    found: dict[str, Availability] = {}
    for format, install in INSTALL.items():
        try:
            found[format] = Availability(True, _module(format).versions(), install)
        except ExportError as error:
            found[format] = Availability(False, str(error), install)
    return found


def _module(format: str) -> Any:
    if format not in EXPORTERS:
        raise ExportError(f"There is no exporter for '{format}'; known are {', '.join(EXPORTERS)}.")
    try:
        return importlib.import_module(EXPORTERS[format])
    except ModuleNotFoundError as error:
        raise MissingBackend(format, error.name or str(error), INSTALL[format]) from error
