"""OpenVINO on the CPU: IR (.xml with its .bin) and ONNX files."""

# Where the package is absent, its name is taken for this very file.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino  # pyright: ignore[reportMissingImports]

from exporters.errors import ExportError, first_line
from exporters.runtimes import Loaded


def load(path: Path, *, threads: int, batch: int, ranges: Sequence[np.ndarray] | None = None) -> Loaded:
    """See `exporters.runtimes.load`. Asks for fp32: on CPUs with bf16 OpenVINO would take that on its own.

    With `ranges`, inputs that activations are calibrated on, the model is quantized first, as in `openvino_int8`.
    """
    try:
        model: Any = openvino.Core().read_model(path)
        if batch:
            model.reshape({i: [batch, *i.get_partial_shape()[1:]] for i in model.inputs})
        if ranges is not None:
            from exporters.openvino_int8 import quantized  # needs a package more

            model = quantized(model, [tuple(ranges)])
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        compiled = openvino.Core().compile_model(model, "CPU", settings)
    except Exception as error:
        raise ExportError(f"OpenVINO {openvino.__version__} does not open {path}: {first_line(error)}") from error
    request: Any = compiled.create_infer_request()
    shapes = tuple(tuple(size.get_length() if size.is_static else 0 for size in i.get_partial_shape()) for i in compiled.inputs)

    def run(arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        try:
            found = request.infer(list(arrays), share_inputs=True)
        except Exception as error:
            sizes = " and ".join(str(array.shape) for array in arrays)
            raise ExportError(f"OpenVINO cannot run {path} on inputs of shape {sizes}: {first_line(error)}") from error
        return [found[output] for output in compiled.outputs]

    return Loaded(run, shapes, openvino.__version__.partition("-")[0])
