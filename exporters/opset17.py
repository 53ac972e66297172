"""An ONNX graph of opset 18, which torch writes, brought down to 17, which older runtimes read.

    ReduceMean(x, axes)        ->  ReduceMean[axes](x)        and every other reduction
    Split[num_outputs = n](x)  ->  Split(x)                   and other attributes that say what 17 does anyway

TensorRT before release 10 reads a graph of opset 18, leaves the axes out and takes every mean over all axes, the batch included,
without a word (https://github.com/NVIDIA/TensorRT/issues/3467). Whatever else changed in opset 18 is refused by the checker, and
the finished file is compared with the model like any other.
"""

from __future__ import annotations

import onnx
import onnx.checker
from onnx import ModelProto, NodeProto, helper, numpy_helper

from exporters.errors import ExportError, first_line

OPSET, IR = 17, 8
"""The operator set, and the version of the file format that came with it."""
REDUCTIONS = frozenset(f"Reduce{name}" for name in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare"))

# ReduceSum is missing on purpose: its axes have been an input since opset 13.
DEFAULTS: dict[str, dict[str, int | bytes | None]] = {
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"},
    "Split": {"num_outputs": None},  # as many as there are names for, all of one size
}
"""Operator -> attributes that came with opset 18, and what they say by default."""


class NeedsNewer(ExportError):
    """A graph that the opset asked for cannot hold."""


def lowered(proto: ModelProto) -> ModelProto:
    """A copy in opset 17.

    Raises:
        NeedsNewer: the graph holds an operator that opset 17 does not have in this form; names it.
    """
    made = ModelProto()
    made.CopyFrom(proto)
    # of the copy, so that the caller's graph stays as it was
    constants = {tensor.name: tensor for tensor in made.graph.initializer}
    for node in made.graph.node:
        if node.op_type in REDUCTIONS:
            _reduction(node, constants)
        for name, default in DEFAULTS.get(node.op_type, {}).items():
            _drop(node, name, default)
    # Axes that have become attributes would stay behind as weights that nobody reads.
    used = {name for node in made.graph.node for name in node.input} | {output.name for output in made.graph.output}
    for tensor in [tensor for tensor in made.graph.initializer if tensor.name not in used]:
        made.graph.initializer.remove(tensor)
    for declared in made.opset_import:
        if declared.domain == "":
            declared.version = OPSET
    made.ir_version = min(made.ir_version, IR)
    try:
        # A full check serializes the graph, which protobuf refuses beyond 2 GiB.
        onnx.checker.check_model(made, full_check=made.ByteSize() < 1 << 30)
    except Exception as error:
        raise NeedsNewer(f"The model needs opset 18 or newer ({first_line(error)}). Ask for --opset 18.") from error
    return made


def _reduction(node: NodeProto, constants: dict[str, onnx.TensorProto]) -> None:
    """Axes from the second input to the attribute."""
    axes = node.input[1] if len(node.input) > 1 else ""
    _drop(node, "noop_with_empty_axes", 0)
    # Computed axes have no form as an attribute.
    if axes and axes not in constants:
        raise NeedsNewer(f"{node.op_type} of {node.name} has axes that opset 17 cannot hold. Ask for --opset 18.")
    if axes:
        node.attribute.append(helper.make_attribute("axes", numpy_helper.to_array(constants[axes]).tolist()))
    del node.input[1:]


def _drop(node: NodeProto, name: str, default: int | bytes | None) -> None:
    """Take an attribute away that says what opset 17 does anyway; None: whatever it says."""
    for attribute in [attribute for attribute in node.attribute if attribute.name == name]:
        if default is None or helper.get_attribute_value(attribute) == default:
            node.attribute.remove(attribute)
