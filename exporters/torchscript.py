"""TorchScript: a last resort, for devices whose torch is too old for anything else. torch no longer develops it.

The model is traced on its example inputs: the batch stays dynamic as long as the code takes it from its input, which the
comparison with other batch sizes proves.
"""

from __future__ import annotations

from pathlib import Path

import torch

from exporters import capture
from exporters.checked_write import proven
from exporters.exported import Exported
from exporters.request import Request


def export(request: Request) -> Exported:
    """Write and prove a traced module.

    Raises:
        ExportError: a model that torch.jit does not trace, or an unwritable path.
        ParityError: torch computes something else from the file.
    """
    with capture.refusing("torch.jit does not trace this model"), torch.no_grad():
        traced = torch.jit.trace(request.subject.model, request.subject.batch, strict=False)
    kept = {name: str(value) for name, value in sorted(request.metadata.items())}

    def write(to: Path) -> None:
        with capture.quiet():
            torch.jit.save(traced, to, _extra_files=kept)

    return proven(request, write)
