"""An ONNX file to be timed and thrown away, by torch's older exporter: milliseconds where the newer one takes seconds.

It is not shipped. The runtime makes the same of it as of the real file where a model is made of convolutions, linear layers,
batch norms, simple activations, pooling, sums and products (a test says so for each; a flattening is a Flatten in one and a
Reshape in the other, a global pooling a GlobalAveragePool or a ReduceMean); elsewhere the two exporters choose other operations,
and the real file has to be timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from exporters import capture, onnx
from exporters.request import Request

_NEWEST = 18  # of the operator sets that the older exporter knows


def write(model: nn.Module, inputs: Sequence[Tensor], path: Path, opset: int) -> None:
    """Write a model to `path`, with a dynamic batch. The model is not changed.

    Raises:
        ExportError: neither exporter takes the model.
    """
    subject = capture.subject(model, inputs)
    try:
        with capture.quiet():
            torch.onnx.export(
                subject.model,
                subject.batch,
                str(path),
                dynamo=False,
                # Operators that this exporter writes are the same to the runtime in a later opset.
                opset_version=min(opset, _NEWEST),
                input_names=list(subject.inputs),
                output_names=list(subject.outputs),
                dynamic_axes={name: {0: "batch"} for name in (*subject.inputs, *subject.outputs)},
            )
    except Exception:  # it refuses in many ways, and a later torch may not have it
        onnx.export(Request("onnx", model, inputs, path, opset=opset, check_parity=False))
