"""ExecuTorch in 8 bits for XNNPACK, by PT2E: activations calibrated on real inputs, weights with a scale per channel."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e  # pyright: ignore[reportMissingImports]

from exporters import capture, executorch
from exporters.batching import of, of_size
from exporters.checked_write import SLACK, enough
from exporters.errors import ExportError
from exporters.exported import Exported


def export(
    model: nn.Module,
    inputs: Sequence[Tensor],
    path: Path,
    *,
    metadata: Mapping[str, str],
    samples: Iterable[Sequence[Tensor]] | None = None,
    calibration: Sequence[Sequence[Tensor]] = (),
    int8_error: float = 0.05,
    batch: int = 1,
) -> Exported:
    """Write a quantized program for `batch` samples at a time.

    Raises:
        ExportError: as for `executorch`; too few calibration samples, or a model that cannot be quantized.
        ParityError: its relative error on `samples` is above twice `int8_error`.
    """
    del metadata
    enough(calibration)
    subject = capture.subject(model, inputs)
    example = of(subject, batch)
    program = executorch.fixed(subject.model, example)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    try:
        with capture.quiet(), torch.no_grad():
            prepared = prepare_pt2e(program.module(), quantizer)
            for part in of_size(calibration, batch):
                prepared(*part)
            quantized = executorch.fixed(convert_pt2e(prepared), example)
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"This model cannot be quantized for XNNPACK: {capture.reason(error)}") from error
    allowed = SLACK * int8_error
    return executorch.saved("executorch-int8", quantized, subject, path, samples or calibration, batch, allowed=allowed)
