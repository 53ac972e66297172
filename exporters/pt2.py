"""torch.export's own file (.pt2): the graph and weights as torch itself opens them again, without the model's class.

For torch.compile, AOTInductor or a later conversion. The batch stays dynamic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from exporters import capture
from exporters.checked_write import proven
from exporters.exported import Exported


def export(
    model: nn.Module,
    inputs: Sequence[Tensor],
    path: Path,
    *,
    metadata: Mapping[str, str],
    samples: Iterable[Sequence[Tensor]] | None = None,
) -> Exported:
    """Write and prove a program.

    Raises:
        ExportError: a model that torch.export does not take, or an unwritable path.
        ParityError: torch computes something else from the file.
    """
    subject = capture.subject(model, inputs)
    program = capture.program(subject)
    kept = {name: str(metadata[name]) for name in sorted(metadata)}

    def write(to: Path) -> None:
        with capture.quiet():
            torch.export.save(program, to, extra_files=kept)

    return proven("pt2", "torch", path, write, subject, samples or (tuple(inputs),))
