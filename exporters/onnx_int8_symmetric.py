"""ONNX in 8 bits as TensorRT needs it: activations without a zero point, biases in float, weights as QuantizeLinear of floats.

In opset 17 where that is possible, because TensorRT before 10 misreads a later one (exporters/opset17.py).
Runs in ONNX Runtime too, a little less exactly than `onnx-int8` (half of the range of an activation is not used). The file is as
large as the float one: TensorRT takes the 8 bits when it builds the engine (exporters/standalone/engine.py).
"""

from __future__ import annotations

from dataclasses import replace

from exporters import onnx_int8, opset17
from exporters.exported import Exported
from exporters.request import Request


def export(request: Request) -> Exported:
    """As `onnx-int8`, in opset 17 where the model has that form, else in the one that was asked for."""
    try:
        return onnx_int8.export(replace(request, opset=opset17.OPSET), symmetric=True)
    except opset17.NeedsNewer:
        return onnx_int8.export(replace(request, opset=max(request.opset, opset17.OPSET + 1)), symmetric=True)
