"""The end of every export: written beside its place, opened in its runtime, compared with the model, then moved into place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from exporters import parity, runtimes
from exporters.atomic import sha256, staged, total_bytes
from exporters.batching import of_size
from exporters.exported import Exported
from exporters.formats import FORMATS
from exporters.request import Request


def proven(
    request: Request,
    write: Callable[[Path], object],
    *,
    allowed: float | None = None,
    opset: int | None = None,
    kept_float: tuple[str, ...] = (),
) -> Exported:
    """Let `write` put the file (and what belongs beside it) down, and keep it if it is the model.

    Args:
        request: the model, the place, and the samples to compare on.
        write: writes to the path that it is given.
        allowed: relative error of a format with fewer bits; None asks for parity.
        opset: what the record says.
        kept_float: what the record says.

    Raises:
        ExportError: the file cannot be written or opened.
        ParityError: it is not the model; nothing is kept.
    """
    format = FORMATS[request.format]
    samples = of_size(request.real, request.batch) if format.fixed else request.real
    with staged(request.path) as temporary:
        write(temporary)
        # Inside the block: a file that is not the model raises here and is never moved into place.
        run = runtimes.load(format.runtime, temporary).run
        found = parity.check(run, request.subject, samples, allowed=allowed, fixed=format.fixed)
        size, digest = total_bytes(temporary), sha256(temporary)
    return Exported(request.format, request.path, digest, size, opset, found.parity, found.closeness, kept_float)
