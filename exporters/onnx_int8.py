"""ONNX in 8 bits: the float graph with QuantizeLinear and DequantizeLinear around every layer (exporters/qdq.py).

Runs in ONNX Runtime, and anywhere else that reads QDQ. It is no longer the model to 1e-4: its relative error on real samples is
held to a bound (exporters/parity.py), and the share of samples on which both choose the same class is told.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from exporters import onnx, qdq
from exporters.checked_write import SLACK, enough, proven
from exporters.exported import Exported


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
    allowed on them. `symmetric` is the dialect of TensorRT. The other arguments are those of every
    exporter.

    Raises:
        ExportError: as for `onnx`; no calibration samples, or a model that cannot be quantized within the bound.
        ParityError: on `samples` the file is further off than twice the bound.
    """
    enough(calibration)
    arrays = [tuple(x.detach().cpu().contiguous().numpy() for x in batch) for batch in calibration]
    subject, proto = onnx.converted(model, inputs, opset=opset, metadata=metadata)
    with tempfile.TemporaryDirectory() as folder:
        onnx.write(proto, Path(folder, "float.onnx"), path)
        del proto
        made = qdq.quantize(Path(folder, "float.onnx"), arrays, calibrator=calibrator, symmetric=symmetric, bound=int8_error)
    onnx.clean(made.proto, metadata)
    return proven(
        "onnx-int8", "ort", path, lambda to: onnx.write(made.proto, to, path), subject, samples or calibration,
        allowed=SLACK * int8_error, opset=opset, kept_float=made.kept_float,
    )  # fmt: skip
