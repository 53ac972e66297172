"""LiteRT (formerly TensorFlow Lite) for phones and small boards: a .tflite whose layers run in XNNPACK.

    torch.export -> StableHLO -> LiteRT's own operators -> .tflite

The batch is fixed: the converter writes shapes as constants and refuses a dynamic one. Inputs keep their layout (channels first);
the converter puts transpositions where its operators want channels last.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import litert_torch  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

from exporters import capture
from exporters.batching import of, of_size
from exporters.capture import Subject
from exporters.checked_write import proven
from exporters.errors import ExportError
from exporters.exported import Exported


def export(
    model: nn.Module,
    inputs: Sequence[Tensor],
    path: Path,
    *,
    metadata: Mapping[str, str],
    samples: Iterable[Sequence[Tensor]] | None = None,
    batch: int = 1,
) -> Exported:
    """Write and prove a file for `batch` samples at a time. `metadata` are left aside: the converter has no place for them.

    Raises:
        ExportError: a model that torch.export or LiteRT does not take, or an unwritable path.
        ParityError: LiteRT computes something else from the file.
    """
    del metadata
    subject = capture.subject(model, inputs)
    made = converted(subject, batch)
    parts = of_size(samples or (tuple(inputs),), batch)
    return proven("litert", "litert", path, lambda to: made.export(str(to)), subject, parts, fixed=True)


def converted(subject: Subject, batch: int) -> Any:
    """The model as LiteRT has it, for one batch size."""
    try:
        with capture.quiet():
            return litert_torch.convert(subject.model, of(subject, batch))
    except Exception as error:
        raise ExportError(f"LiteRT does not take this model: {capture.reason(error)}") from error
