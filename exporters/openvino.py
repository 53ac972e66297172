"""OpenVINO IR: an .xml with the graph and a .bin with the weights beside it.

Made from torch.export's program, without ONNX in between. Weights are kept in fp32 (OpenVINO would halve them on its own). The
batch stays dynamic.
"""

# Where the package is absent, its name is taken for this very file.
# pyright: reportAttributeAccessIssue=false
from __future__ import annotations

from typing import Any

import openvino  # pyright: ignore[reportMissingImports]

from exporters import capture
from exporters.capture import Subject
from exporters.checked_write import proven
from exporters.errors import ExportError
from exporters.exported import Exported
from exporters.request import Request


def export(request: Request) -> Exported:
    """Write and prove an IR.

    Raises:
        ExportError: a model that torch.export or OpenVINO does not take, a path that does not end in .xml or cannot be written.
        ParityError: OpenVINO computes something else from the file.
    """
    return saved(request, converted(request.subject))


def converted(subject: Subject) -> Any:
    """The model as OpenVINO's graph, with our names at its ends."""
    program = capture.program(subject)
    with capture.refusing("OpenVINO does not take this model"):
        made: Any = openvino.convert_model(program)
    # What was captured with a free batch comes with every size free: all but the batch are known.
    made.reshape({port: [-1, *example.shape[1:]] for port, example in zip(made.inputs, subject.batch, strict=True)})
    for ports, names in ((made.inputs, subject.inputs), (made.outputs, subject.outputs)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    return made


def saved(request: Request, made: Any, *, allowed: float | None = None) -> Exported:
    """Write a graph and compare it with the model."""
    if request.path.suffix != ".xml":
        raise ExportError(f"{request.path} does not end in .xml, as OpenVINO needs it; give such a path.")
    for key, value in sorted(request.metadata.items()):
        made.set_rt_info(str(value), key.split("."))
    return proven(request, lambda to: openvino.save_model(made, to, compress_to_fp16=False), allowed=allowed)
