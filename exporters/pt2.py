"""torch.export's own file (.pt2): the graph and weights as torch itself opens them again, without the model's class.

For torch.compile, AOTInductor or a later conversion. The batch stays dynamic.
"""

from __future__ import annotations

from pathlib import Path

import torch

from exporters import capture
from exporters.checked_write import proven
from exporters.exported import Exported
from exporters.request import Request


def export(request: Request) -> Exported:
    """Write and prove a program.

    Raises:
        ExportError: a model that torch.export does not take, or an unwritable path.
        ParityError: torch computes something else from the file.
    """
    program = capture.program(request.subject)
    kept = {name: str(value) for name, value in sorted(request.metadata.items())}

    def write(to: Path) -> None:
        with capture.quiet():
            torch.export.save(program, to, extra_files=kept)

    return proven(request, write)
