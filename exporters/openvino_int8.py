"""OpenVINO IR in 8 bits by NNCF's post-training quantization: activations calibrated on real inputs, biases corrected.

Runs only where OpenVINO does. As for every format with fewer bits its relative error on real samples is held to a bound. No
layers are left in float by measured error here: where the bound does not hold, the export is refused; `onnx-int8` may still do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import nncf  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

from exporters import capture, openvino
from exporters.checked_write import SLACK, enough
from exporters.errors import ExportError, first_line
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
) -> Exported:
    """Write a quantized IR.

    Raises:
        ExportError: as for `openvino`; too few calibration samples, or a model that NNCF does not quantize.
        ParityError: its relative error on `samples` is above twice `int8_error`.
    """
    enough(calibration)
    subject = capture.subject(model, inputs)
    arrays = [tuple(x.detach().cpu().numpy() for x in batch) for batch in calibration]
    made = openvino.converted(subject)
    try:
        with capture.quiet():
            quantized = nncf.quantize(made, nncf.Dataset(arrays), subset_size=len(arrays), preset=nncf.QuantizationPreset.MIXED)
    except Exception as error:
        raise ExportError(f"NNCF does not quantize this model: {first_line(error)}") from error
    allowed = SLACK * int8_error
    return openvino.saved("openvino-int8", quantized, subject, path, metadata, samples or calibration, allowed=allowed)
