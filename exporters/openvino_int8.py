"""OpenVINO IR in 8 bits by NNCF's post-training quantization: activations calibrated on real inputs, biases corrected.

Runs only where OpenVINO does. As for every format with fewer bits its relative error on real samples is held to a bound. No
layers are left in float by measured error here: where the bound does not hold, the export is refused; `onnx-int8` may still do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import nncf  # pyright: ignore[reportMissingImports]
import numpy as np

from exporters import capture, openvino
from exporters.exported import Exported
from exporters.request import Request


def export(request: Request) -> Exported:
    """Write a quantized IR.

    Raises:
        ExportError: as for `openvino`; too few calibration samples, or a model that NNCF does not quantize.
        ParityError: its relative error on `samples` is above twice `request.int8_error`.
    """
    arrays = [tuple(x.detach().cpu().numpy() for x in batch) for batch in request.ranges]
    made = openvino.converted(request.subject)
    with capture.refusing("NNCF does not quantize this model"):
        made = quantized(made, arrays)
    return openvino.saved(request, made, allowed=request.allowed)


def quantized(model: Any, batches: Sequence[tuple[np.ndarray, ...]]) -> Any:
    """A model of OpenVINO in 8 bits, its activations calibrated on these inputs."""
    # MIXED: activations with a zero point, weights without, as in `onnx-int8`.
    preset = nncf.QuantizationPreset.MIXED
    return nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches), preset=preset)
