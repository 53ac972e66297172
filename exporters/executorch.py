"""ExecuTorch for phones and small boards: a .pte whose layers run in XNNPACK, the rest in portable kernels.

    torch.export -> edge dialect -> subgraphs for XNNPACK -> .pte

The batch is fixed: memory is planned at export, and a range of batches would reserve the largest and cost speed at every other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner  # pyright: ignore[reportMissingImports]
from executorch.exir import to_edge_transform_and_lower  # pyright: ignore[reportMissingImports]
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
    """Write and prove a program for `batch` samples at a time. The format has no place for `metadata`.

    Raises:
        ExportError: a model that torch.export or ExecuTorch does not take, or an unwritable path.
        ParityError: ExecuTorch computes something else from the file.
    """
    del metadata
    subject = capture.subject(model, inputs)
    program = fixed(subject.model, of(subject, batch))
    return saved("executorch", program, subject, path, samples or (tuple(inputs),), batch, allowed=None)


def fixed(model: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """The captured graph for one batch size."""
    try:
        with capture.quiet():
            return torch.export.export(model, inputs)
    except Exception as error:
        raise ExportError(f"torch.export does not take this model: {capture.reason(error)}") from error


def saved(
    format: str,
    program: torch.export.ExportedProgram,
    subject: Subject,
    path: Path,
    samples: Iterable[Sequence[Tensor]],
    batch: int,
    *,
    allowed: float | None,
) -> Exported:
    """Lower a program, write it, and compare it with the model."""
    try:
        with capture.quiet():
            lowered: Any = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    except Exception as error:
        raise ExportError(f"ExecuTorch does not take this model: {capture.reason(error)}") from error
    parts = of_size(samples, batch)
    return proven(
        format, "executorch", path, lambda to: to.write_bytes(lowered.buffer), subject, parts, allowed=allowed, fixed=True
    )
