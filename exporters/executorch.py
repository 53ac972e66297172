"""ExecuTorch for phones and small boards: a .pte whose layers run in XNNPACK, the rest in portable kernels.

    torch.export -> edge dialect -> subgraphs for XNNPACK -> .pte

The batch is fixed: memory is planned at export, and a range of batches would reserve the largest and cost speed at every other.
"""

from __future__ import annotations

from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner  # pyright: ignore[reportMissingImports]
from executorch.exir import to_edge_transform_and_lower  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

from exporters import capture
from exporters.batching import of
from exporters.checked_write import proven
from exporters.exported import Exported
from exporters.request import Request


def export(request: Request) -> Exported:
    """Write and prove a program for `request.batch` samples at a time. The format has no place for metadata.

    Raises:
        ExportError: a model that torch.export or ExecuTorch does not take, or an unwritable path.
        ParityError: ExecuTorch computes something else from the file.
    """
    program = fixed(request.subject.model, of(request.subject, request.batch))
    return saved(request, program)


def fixed(model: nn.Module, inputs: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """The captured graph for one batch size."""
    with capture.refusing("torch.export does not take this model"):
        return torch.export.export(model, inputs)


def saved(request: Request, program: torch.export.ExportedProgram, *, allowed: float | None = None) -> Exported:
    """Lower a program, write it, and compare it with the model."""
    with capture.refusing("ExecuTorch does not take this model"):
        lowered: Any = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    return proven(request, lambda to: to.write_bytes(lowered.buffer), allowed=allowed)
