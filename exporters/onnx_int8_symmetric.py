"""ONNX in 8 bits as TensorRT needs it: activations without a zero point, biases in float, weights as QuantizeLinear of floats.

In opset 17 where that is possible, because TensorRT before 10 misreads a later one (exporters/opset17.py).
Runs in ONNX Runtime too, a little less exactly than `onnx-int8` (half of the range of a rectifier is not used). The file is as
large as the float one: TensorRT takes the 8 bits when it builds the engine (exporters/standalone/engine.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from exporters import onnx_int8, opset17
from exporters.exported import Exported


def export(
    model: nn.Module,
    inputs: Sequence[Tensor],
    path: Path,
    *,
    calibration: Sequence[Sequence[Tensor]] = (),
    calibrator: str = "minmax",
    int8_error: float = 0.05,
    opset: int = 18,
    **common: Any,
) -> Exported:
    """As `onnx-int8`; what `common` holds is that of every exporter. Opset 17 where the model has that form, else `opset`."""
    common |= {"calibration": calibration, "calibrator": calibrator, "int8_error": int8_error, "symmetric": True}
    write = functools.partial(onnx_int8.export, model, inputs, path, **common)
    try:
        made = write(opset=opset17.OPSET)
    except opset17.NeedsNewer:
        made = write(opset=max(opset, opset17.OPSET + 1))
    return dataclasses.replace(made, format="onnx-int8-symmetric")
