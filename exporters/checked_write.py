"""The end of every export: written beside its place, opened in its runtime, compared with the model, then moved into place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torch import Tensor

from exporters import parity, runtimes
from exporters.atomic import sha256, staged, total_bytes
from exporters.capture import Subject
from exporters.errors import ExportError
from exporters.exported import Exported

LEAST_SAMPLES = 8
"""The range of an activation over fewer inputs is that of these inputs."""
SLACK = 2.0
"""Samples that a file was not calibrated on may lie further off by this factor before it is refused."""

Samples = Iterable[Sequence[Tensor]]


def proven(
    format: str,
    runtime: str,
    path: Path,
    write: Callable[[Path], object],
    subject: Subject,
    samples: Samples,
    *,
    allowed: float | None = None,
    fixed: bool = False,
    opset: int | None = None,
    kept_float: tuple[str, ...] = (),
) -> Exported:
    """Let `write` put the file (and what belongs beside it) down, and keep it if it is the model.

    Args:
        format: what the record says.
        runtime: where the file is run.
        path: of the finished file.
        write: writes to the path that it is given.
        subject: the model.
        samples: batches of real inputs.
        allowed: relative error of a format with fewer bits; None asks for parity.
        fixed: the file takes the batch size of `samples` only.
        opset: what the record says.
        kept_float: what the record says.

    Raises:
        ExportError: the file cannot be written or opened.
        ParityError: it is not the model; nothing is kept.
    """
    with staged(path) as temporary:
        write(temporary)
        run = runtimes.load(runtime, temporary).run
        found = parity.check(run, subject, samples, allowed=allowed, fixed=fixed)
        size, digest = total_bytes(temporary), sha256(temporary)
    return Exported(format, path, digest, size, opset, found.parity, found.closeness, kept_float)


def enough(calibration: Sequence[Sequence[Tensor]]) -> None:
    """Refuse to take ranges from too little.

    Raises:
        ExportError: fewer than eight samples.
    """
    count = sum(len(batch[0]) for batch in calibration)
    if not count:
        raise ExportError("8 bits need real inputs to take ranges from, and none were given. Add --data.")
    if count < LEAST_SAMPLES:
        raise ExportError(f"There are {count} calibration samples; needed are at least {LEAST_SAMPLES}, better some hundred.")
