"""ONNX by torch's graph exporter: dynamic batch, kept names, checked, one file.

    torch.export -> ONNX graph, constants and batch norms folded -> metadata -> checker -> parity -> rename into place

The exporter writes into every node where in the user's source it came from; that goes (it holds paths of the machine and doubles
small files). Inputs are named `input` (`input_0`, `input_1`, ... if there are several), outputs `output` (`output_0`, ...) or,
where the model returns a dictionary of tensors, by its keys. Weights keep their names unless folded. Equal models give equal
bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx.checker
import onnx.defs
import onnx.helper
import onnxruntime  # noqa: F401  # pyright: ignore[reportUnusedImport]  the comparison needs it
import onnxscript  # noqa: F401  # pyright: ignore[reportUnusedImport]  torch needs it later: a missing one should show now
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from exporters import capture
from exporters.atomic import sha256, staged, total_bytes
from exporters.capture import Subject
from exporters.checked_write import proven
from exporters.errors import ExportError
from exporters.exported import Exported
from exporters.folded import folded
from exporters.opset17 import NeedsNewer, lowered
from exporters.request import Request

OPSETS = range(17, 26)
"""Operator sets that torch writes or converts to, from 18 on, and the one below it, which `lowering` makes of 18."""
SINGLE_FILE_BYTES = 1_900_000_000
"""One protobuf file holds 2 GiB; above this the weights go to a second file beside it."""


def export(request: Request) -> Exported:
    """Write and prove an ONNX file. The batch (first axis of every input) is dynamic, every other size fixed.

    Raises:
        ExportError: unsupported opset, a model that torch.export or the ONNX converter does not take, an unwritable path.
        ParityError: ONNX Runtime computes something else from the file.
    """
    proto = converted(request)
    if request.check_parity:
        return proven(request, lambda to: write(proto, to, request.path), opset=request.opset)
    with staged(request.path) as temporary:
        write(proto, temporary, request.path)
        return Exported(request.format, request.path, sha256(temporary), total_bytes(temporary), request.opset, None)


def converted(request: Request) -> onnx.ModelProto:
    """The float ONNX graph of a model, in the opset that was asked for."""
    if request.opset not in OPSETS:
        raise ExportError(f"The opset is {request.opset}; needed is one from {OPSETS[0]} to {OPSETS[-1]}.")
    # The converter knows no opset below 18: 17 is made of that afterwards.
    proto = _convert(request.subject, max(request.opset, OPSETS[1]))
    _refuse_newer(proto, request.opset)
    proto = lowered(proto) if request.opset < OPSETS[1] else proto
    clean(proto, request.metadata)
    return proto


def _refuse_newer(proto: onnx.ModelProto, opset: int) -> None:
    """The converter writes some operators whether the opset has them or not; the checker would only say that one is unknown.

    Raises:
        NeedsNewer: names the lowest opset that has all operators.
    """
    first: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            first[schema.name] = min(schema.since_version, first.get(schema.name, schema.since_version))
    nodes = (node for part in (proto.graph, *proto.functions) for node in part.node if node.domain == "")
    newer = {node.op_type: first[node.op_type] for node in nodes if first.get(node.op_type, 0) > opset}
    if newer:
        raise NeedsNewer(
            f"Opset {opset} does not have {' and '.join(sorted(newer))}, which the model needs. The lowest that has is "
            f"{max(newer.values())}: give --opset {max(newer.values())}."
        )


def _convert(subject: Subject, opset: int) -> onnx.ModelProto:
    # The layout of what the fast kernel gives on CPUs is not that of what is written for it: a copy in between would be left out.
    with capture.refusing("This model does not export to ONNX"), sdpa_kernel(SDPBackend.MATH):
        program = torch.onnx.export(
            folded(subject.model),
            subject.batch,
            dynamo=True,
            opset_version=opset,
            input_names=list(subject.inputs),
            output_names=list(subject.outputs),
            # Every other size stays fixed, so that runtimes can plan memory.
            dynamic_shapes=capture.per_argument(subject),
            optimize=True,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    written = next(o.version for o in proto.opset_import if o.domain == "")
    # A converter that fails to change the opset leaves it where it was, without an error.
    if written != opset:
        raise ExportError(f"The model could not be converted to opset {opset} (it stands at {written}). Ask for {written}.")
    return proto


def clean(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Drop what only the exporter's authors need, and write the caller's metadata."""
    # Constants and functions carry such traces, too.
    graph = proto.graph
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    for function in proto.functions:
        for node in function.node:
            del node.metadata_props[:]
            node.doc_string = ""
    proto.doc_string = ""
    del proto.metadata_props[:]
    # Sorted: equal models give equal bytes.
    onnx.helper.set_model_props(proto, {key: str(value) for key, value in sorted(metadata.items())})


def write(proto: onnx.ModelProto, temporary: Path, path: Path) -> None:
    """Write a graph to `temporary` and let the checker look at it; `path` is what a refusal names."""
    # Less than 2 GiB, as the graph itself needs room in the same protobuf.
    weights = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    if weights <= SINGLE_FILE_BYTES:
        onnx.save_model(proto, temporary)
    else:
        onnx.save_model(
            proto, temporary, save_as_external_data=True, all_tensors_to_one_file=True, location=f"{temporary.name}.data"
        )
    try:
        # By path and not in memory: only so can it see weights beside the file.
        onnx.checker.check_model(str(temporary), full_check=True)
    except Exception as error:
        raise ExportError(f"The ONNX checker refuses the file for {path}: {error}") from error
