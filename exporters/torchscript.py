"""TorchScript: a last resort, for devices whose torch is too old for anything else. torch no longer develops it.

The model is traced on its example inputs: the batch stays dynamic as long as the code takes it from its input, which the
comparison with other batch sizes proves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from exporters import capture
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
) -> Exported:
    """Write and prove a traced module.

    Raises:
        ExportError: a model that torch.jit does not trace, or an unwritable path.
        ParityError: torch computes something else from the file.
    """
    subject = capture.subject(model, inputs)
    try:
        with capture.quiet(), torch.no_grad():
            traced = torch.jit.trace(subject.model, subject.batch, strict=False)
    except Exception as error:
        raise ExportError(f"torch.jit does not trace this model: {capture.reason(error)}") from error
    kept = {name: str(metadata[name]) for name in sorted(metadata)}

    def write(to: Path) -> None:
        with capture.quiet():
            torch.jit.save(traced, to, _extra_files=kept)

    return proven("torchscript", "torch", path, write, subject, samples or (tuple(inputs),))
