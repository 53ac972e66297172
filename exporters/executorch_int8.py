"""ExecuTorch in 8 bits for XNNPACK, by PT2E: activations calibrated on real inputs, weights with a scale per channel."""

from __future__ import annotations

import torch
from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config  # pyright: ignore[reportMissingImports]
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e  # pyright: ignore[reportMissingImports]

from exporters import capture, executorch
from exporters.batching import of, of_size
from exporters.exported import Exported
from exporters.request import Request


def export(request: Request) -> Exported:
    """Write a quantized program for `request.batch` samples at a time.

    Raises:
        ExportError: as for `executorch`; too few calibration samples, or a model that cannot be quantized.
        ParityError: its relative error on `samples` is above twice `request.int8_error`.
    """
    example = of(request.subject, request.batch)
    ranges = of_size(request.ranges, request.batch)
    program = executorch.fixed(request.subject.model, example)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    with capture.refusing("This model cannot be quantized for XNNPACK"), torch.no_grad():
        prepared = prepare_pt2e(program.module(), quantizer)
        for part in ranges:
            prepared(*part)
        quantized = executorch.fixed(convert_pt2e(prepared), example)
    return executorch.saved(request, quantized, allowed=request.allowed)
