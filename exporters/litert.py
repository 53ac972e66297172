"""LiteRT (formerly TensorFlow Lite) for phones and small boards: a .tflite whose layers run in XNNPACK.

    torch.export -> StableHLO -> LiteRT's own operators -> .tflite

The batch is fixed: the converter writes shapes as constants and refuses a dynamic one. Inputs keep their layout (channels first);
the converter puts transpositions where its operators want channels last.
"""

from __future__ import annotations

from typing import Any

import litert_torch  # pyright: ignore[reportMissingImports]

from exporters import capture
from exporters.batching import of
from exporters.checked_write import proven
from exporters.exported import Exported
from exporters.request import Request


def export(request: Request) -> Exported:
    """Write and prove a file for `request.batch` samples at a time. Metadata are left aside: the converter has no place for them.

    Raises:
        ExportError: a model that torch.export or LiteRT does not take, or an unwritable path.
        ParityError: LiteRT computes something else from the file.
    """
    made = converted(request)
    return proven(request, lambda to: made.export(str(to)))


def converted(request: Request) -> Any:
    """The model as LiteRT has it, for one batch size."""
    with capture.refusing("LiteRT does not take this model"):
        return litert_torch.convert(request.subject.model, of(request.subject, request.batch))
