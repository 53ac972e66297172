"""ONNX in 8 bits: the float graph with QuantizeLinear and DequantizeLinear around every layer (exporters/qdq.py).

Runs in ONNX Runtime, and anywhere else that reads QDQ. It is no longer the model to 1e-4: its relative error on real samples is
held to a bound (exporters/parity.py), and the share of samples on which both choose the same class is told.
"""

from __future__ import annotations

from exporters import onnx, qdq
from exporters.checked_write import proven
from exporters.exported import Exported
from exporters.request import Request
from exporters.standalone import leftovers


def export(request: Request, *, symmetric: bool = False) -> Exported:
    """Write a quantized ONNX file, near enough to the model on real inputs. `symmetric` is the dialect of TensorRT.

    Raises:
        ExportError: as for `onnx`; no calibration samples, or a model that cannot be quantized within the bound.
        ParityError: on the samples the file is further off than twice the bound.
    """
    arrays = [tuple(x.detach().cpu().contiguous().numpy() for x in batch) for batch in request.ranges]
    proto = onnx.converted(request)
    with leftovers.folder() as folder:
        plain = folder / "float.onnx"
        onnx.write(proto, plain, request.path)
        # It may be gigabytes, which are not needed any longer.
        del proto
        made = qdq.quantize(plain, arrays, calibrator=request.calibrator, symmetric=symmetric, bound=request.int8_error)
    onnx.clean(made.proto, request.metadata)
    return proven(
        request,
        lambda to: onnx.write(made.proto, to, request.path),
        allowed=request.allowed,
        opset=request.opset,
        kept_float=made.kept_float,
    )
