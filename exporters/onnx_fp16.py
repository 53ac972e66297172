"""ONNX with weights and arithmetic in half precision; inputs and outputs stay fp32.

Half the bytes everywhere. Faster only where the runtime has kernels for it (GPUs, some ARM cores); ONNX Runtime on x86 widens
again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from onnxruntime.quantization.onnx_model import ONNXModel
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor, nn

from exporters import onnx
from exporters.capture import quiet
from exporters.checked_write import proven
from exporters.errors import ExportError, first_line
from exporters.exported import Exported

ALLOWED = 1e-2
"""Rounding to 11 bits leaves 5e-4 a layer, which grows with the root of depth; an overflow or a lost scale leaves far more."""


def export(
    model: nn.Module,
    inputs: Sequence[Tensor],
    path: Path,
    *,
    metadata: Mapping[str, str],
    samples: Iterable[Sequence[Tensor]] | None = None,
    opset: int = 18,
) -> Exported:
    """Write an ONNX file in half precision.

    Raises:
        ExportError: as for `onnx`, or a graph that does not convert.
        ParityError: its relative error on `samples` is above 1e-2; a value beyond 65,504 somewhere does that.
    """
    subject, proto = onnx.converted(model, inputs, opset=opset, metadata=metadata)
    try:
        with quiet():
            half = ONNXModel(convert_float_to_float16(proto, keep_io_types=True))
            half.topological_sort()
    except Exception as error:
        raise ExportError(f"This model does not convert to half precision: {first_line(error)}") from error
    onnx.clean(half.model, metadata)
    return proven(
        "onnx-fp16", "ort", path, lambda to: onnx.write(half.model, to, path), subject, samples or (tuple(inputs),),
        allowed=ALLOWED, opset=opset,
    )  # fmt: skip
