"""ONNX with weights and arithmetic in half precision; inputs and outputs stay fp32.

Half the bytes everywhere. Faster only where the runtime has kernels for it (GPUs, some ARM cores); ONNX Runtime on x86 widens
again.
"""

from __future__ import annotations

from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16

from exporters import onnx
from exporters.capture import refusing
from exporters.checked_write import proven
from exporters.exported import Exported
from exporters.request import Request

ALLOWED = 1e-2
"""Rounding to 11 bits leaves 5e-4 a layer, which grows with the root of depth; an overflow or a lost scale leaves far more."""


def export(request: Request) -> Exported:
    """Write an ONNX file in half precision.

    Raises:
        ExportError: as for `onnx`, or a graph that does not convert.
        ParityError: its relative error on `samples` is above 1e-2; a value beyond 65,504 somewhere does that.
    """
    proto = onnx.converted(request)
    with refusing("This model does not convert to half precision"):
        half = ONNXModel(convert_float_to_float16(proto, keep_io_types=True))  # fp32 ends, so that callers need not know
        # The conversion appends its Casts at the end, where the checker does not accept them.
        half.topological_sort()
    onnx.clean(half.model, request.metadata)
    return proven(request, lambda to: onnx.write(half.model, to, request.path), allowed=ALLOWED, opset=request.opset)
