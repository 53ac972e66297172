"""ONNX in 8 bits: the float graph with QuantizeLinear and DequantizeLinear around every layer (exporters/qdq.py).

Runs in ONNX Runtime, and anywhere else that reads QDQ. It is no longer the model to 1e-4: its relative error on real samples is
held to a bound (exporters/parity.py), and the share of samples on which both choose the same class is told.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from exporters import onnx, parity, qdq, runtimes
from exporters.errors import ExportError
from exporters.exported import Exported
from exporters.onnx import versions
from exporters.staging import sha256, staged, total_bytes

__all__ = ["export", "versions"]

SLACK = 2.0
"""Samples that were not calibrated on may lie further off by this factor before the file is refused."""


def export(
    model: nn.Module,
    inputs: Sequence[Tensor],
    path: Path,
    *,
    metadata: Mapping[str, str],
    samples: Iterable[Sequence[Tensor]] | None = None,
    calibration: Sequence[Sequence[Tensor]] = (),
    calibrator: str = "minmax",
    int8_error: float = 0.05,
    symmetric: bool = False,
    opset: int = 18,
) -> Exported:
    """Write a quantized ONNX file, near enough to the model on real inputs.

    Ranges are taken from the batches of `calibration` in the way that `calibrator` names; `int8_error` is the relative error
    allowed on them. `symmetric` activations have no zero point, as TensorRT needs them. The other arguments are those of every
    exporter.

    Raises:
        ExportError: as for `onnx`; no calibration samples, or a model that cannot be quantized within the bound.
        ParityError: on `samples` the file is further off than twice the bound.
    """
    arrays = [tuple(x.detach().cpu().contiguous().numpy() for x in batch) for batch in calibration]
    if not arrays:
        raise ExportError("8 bits need real inputs to take ranges from, and none were given. Add --data.")
    subject, proto = onnx.converted(model, inputs, opset=opset, metadata=metadata)
    with tempfile.TemporaryDirectory() as folder:
        onnx.write(proto, Path(folder, "float.onnx"), path)
        del proto
        made = qdq.quantize(Path(folder, "float.onnx"), arrays, calibrator=calibrator, symmetric=symmetric, bound=int8_error)
    onnx.clean(made.proto, metadata)
    with staged(path) as temporary:
        onnx.write(made.proto, temporary, path)
        run = runtimes.load("ort", temporary).run
        found = parity.check(run, subject, samples or calibration, allowed=SLACK * int8_error)
        size, digest = total_bytes(temporary), sha256(temporary)
    return Exported("onnx-int8", path, digest, size, opset, None, found.closeness, made.kept_float)
