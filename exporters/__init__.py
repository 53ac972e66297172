"""Trained torch models to the formats of runtimes. A leaf: it knows torch and the runtimes, nothing of how a model was made.

    exported = exporters.export("onnx", model, inputs, "model.onnx")

A format is a module with `export(request) -> Exported`, and a line in exporters/formats.py.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.errors import ExportError, MissingBackend, ParityError
from exporters.exported import Availability, Closeness, Exported, Parity
from exporters.formats import FORMATS
from exporters.no_telemetry import switch_off
from exporters.optional_imports import imported

if TYPE_CHECKING:
    from torch import Tensor, nn

switch_off()  # before any runtime is imported: they are, only where they are asked for

EXPORTERS: dict[str, str] = {name: format.module for name, format in FORMATS.items()}
"""Format -> module, imported when it is asked for."""

INSTALL: dict[str, str] = {name: format.install for name, format in FORMATS.items()}
"""Format -> the line that installs all that it needs."""

ENDING: dict[str, str] = {name: format.ending for name, format in FORMATS.items()}
"""Format -> ending of its file, unlike that of every other format."""

NEEDS: dict[str, tuple[str, ...]] = {name: format.needs for name, format in FORMATS.items()}
"""Format -> modules that have to be there."""

RUNTIME: dict[str, str] = {name: format.runtime for name, format in FORMATS.items()}
"""Format -> the runtime (exporters/runtimes) that its file was compared in."""

LOSSY = frozenset(name for name, format in FORMATS.items() if format.lossy)
"""Formats with fewer bits than the model: held to a closeness instead of a parity."""

CALIBRATED = frozenset(name for name, format in FORMATS.items() if format.calibrated)
"""Formats that take the ranges of their 8 bits from real inputs."""

FIXED = frozenset(name for name, format in FORMATS.items() if format.fixed)
"""Formats whose file takes the batch size that it was written for."""

__all__ = [
    "CALIBRATED",
    "ENDING",
    "EXPORTERS",
    "FIXED",
    "INSTALL",
    "LOSSY",
    "NEEDS",
    "RUNTIME",
    "Availability",
    "Closeness",
    "ExportError",
    "Exported",
    "MissingBackend",
    "Parity",
    "ParityError",
    "available",
    "export",
    "require",
    "versions",
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
        options: the other fields of `exporters.request.Request`, such as `opset` or `calibration`; a format that has no use for
            one leaves it aside.

    Raises:
        ExportError: unknown format, a model that the format cannot hold, or a path that cannot be written.
        MissingBackend: a package is missing; says which and how to install it.
        ParityError: the file computes something else.
    """
    from exporters.request import Request  # torch is loaded where something is exported

    module = _module(format)
    return module.export(Request(format, model, inputs, Path(path), metadata or {}, samples, **options))


def require(format: str) -> None:
    """Look for what a format needs, without loading it.

    Raises:
        MissingBackend: it is not installed; says what and how.
    """
    # find_spec does not import: backends take seconds to load.
    for name in NEEDS[format]:
        if importlib.util.find_spec(name) is None:
            raise MissingBackend(format, name, INSTALL[format])


def versions(format: str) -> str:
    """The packages that write a format, as they are installed."""
    told: list[str] = []
    for name in NEEDS[format]:
        try:
            told.append(f"{name} {version(name)}")
        except PackageNotFoundError:  # under another name, as onnxruntime-gpu is
            told.append(name)
    return ", ".join(told)


def available() -> dict[str, Availability]:
    """For every format, whether it works here; otherwise what is missing and the pip line that brings it."""
    found: dict[str, Availability] = {}
    for format, install in INSTALL.items():
        try:
            require(format)
            found[format] = Availability(True, versions(format), install)
        except ExportError as error:
            found[format] = Availability(False, str(error), install)
    return found


def _module(format: str) -> Any:
    if format not in EXPORTERS:
        raise ExportError(f"There is no exporter for '{format}'; known are {', '.join(EXPORTERS)}.")
    return imported(EXPORTERS[format], format, INSTALL[format])
