"""Static quantization of an ONNX graph by pairs of QuantizeLinear and DequantizeLinear (QDQ).

    q(x) = clip(round(x / s) + z)          weights: one s per output channel, z = 0; activations: one s and z per tensor

Calibration runs the float graph on real inputs and takes for each tensor

    minmax       s from the smallest and the largest value
    percentile   s from the range that holds 99.999 % of the values
    entropy      s of the clipped histogram that is nearest to the whole one (Kullback-Leibler)

Whether the result is near enough to the float graph is measured, not assumed. Where it is not, every layer is quantized alone;
those that move the outputs most stay in float, as few as the bound allows, found by bisection over that order.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType
from onnxruntime.quantization.calibrate import HistogramCollector, TensorsData, create_calibrator
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from exporters.capture import quiet
from exporters.errors import ExportError, first_line
from exporters.runtimes import ort
from exporters.standalone import leftovers

CALIBRATORS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
}
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
JOINS = ("Add", "Concat")
CARRIERS = (
    "AveragePool", "Clip", "Flatten", "GlobalAveragePool", "MaxPool", "Pad",
    "Relu", "Reshape", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
"""What only carries values from layer to layer: in 8 bits too, so that nothing is widened in between."""

Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Quantized:
    """A quantized graph, the layers that stayed in float, and its relative error on the calibration samples."""

    proto: onnx.ModelProto
    kept_float: tuple[str, ...]
    relative: float


def quantize(
    path: Path, samples: Sequence[Arrays], *, calibrator: str = "minmax", symmetric: bool = False, bound: float = 0.05
) -> Quantized:
    """Quantize the float graph in a file.

    Args:
        path: an ONNX file with weights inside.
        samples: batches of real inputs, one array per model input.
        calibrator: a name in `CALIBRATORS`.
        symmetric: for TensorRT: z = 0 (costs a bit behind an activation), float biases, weights quantized in place.
        bound: relative error (exporters/parity.py) that may be left on `samples`.

    Raises:
        ExportError: unknown calibrator, no layer that could be quantized, or a graph that cannot be calibrated.
    """
    if calibrator not in CALIBRATORS:
        raise ExportError(f"The calibrator is '{calibrator}'; known are {', '.join(CALIBRATORS)}.")
    proto = onnx.load(path)
    layers = [node.name for node in proto.graph.node if node.op_type in LAYERS + JOINS]
    if not layers:
        raise ExportError("Nothing in this model can be quantized: it has no convolution, linear layer or matrix product.")
    try:
        ranges = _ranges(path, samples, CALIBRATORS[calibrator])
    except Exception as error:
        raise ExportError(f"ONNX Runtime cannot calibrate this model: {first_line(error)}") from error
    search = _Search(path, ranges, symmetric, tuple(samples))
    made = search.without(())
    if made.relative <= bound:
        return made
    order = search.order(layers)
    few, enough, best = 0, len(order), None
    while enough - few > 1:
        middle = (few + enough) // 2
        tried = search.without(order[:middle])
        few, enough, best = (few, middle, tried) if tried.relative <= bound else (middle, enough, best)
    if best is None:
        raise ExportError(
            f"Quantized, this model has a relative error of {made.relative:.3g}, and keeping layers in float does not bring it "
            f"down to {bound:g}. Allow more (--int8-error), calibrate on more images, or try another --calibrator."
        )
    return best


@dataclass
class _Search:
    """Variants of one graph, calibrated once."""

    path: Path
    ranges: TensorsData
    symmetric: bool
    samples: tuple[Arrays, ...]
    _expected: list[list[np.ndarray]] = field(default_factory=list[list[np.ndarray]])

    def without(self, kept: Sequence[str]) -> Quantized:
        """Everything quantized but these nodes."""
        proto = self._quantized(excluded=kept)
        names = _layer_names(self.path)
        # Some versions of ONNX Runtime quantize nothing where few nodes are left: a float graph has no error, and no fewer bits.
        fewer = any(node.op_type == "DequantizeLinear" for node in proto.graph.node)
        error = self._error(proto, self.samples) if fewer else math.inf
        return Quantized(proto, tuple(names.get(node, node) for node in kept), error)

    def order(self, nodes: Sequence[str]) -> list[str]:
        """Nodes by the error that the quantization of each alone makes, the worst first; on one batch."""
        alone = {node: self._error(self._quantized(only=[node]), self.samples[:1]) for node in nodes}
        return sorted(nodes, key=lambda node: -alone[node])

    def _quantized(self, only: Sequence[str] = (), excluded: Sequence[str] = ()) -> onnx.ModelProto:
        activations = QuantType.QInt8 if self.symmetric else QuantType.QUInt8
        # TensorRT reads neither integer biases nor weights that are integers already.
        settings = {
            "ActivationSymmetric": self.symmetric,
            "WeightSymmetric": True,
            "AddQDQPairToWeight": self.symmetric,
            "QuantizeBias": not self.symmetric,
        }
        with _silent():
            quantizer = QDQQuantizer(
                onnx.load(self.path), True, False, QuantType.QInt8, activations, self.ranges,
                list(only), list(excluded), list(LAYERS + JOINS + CARRIERS), settings,
            )  # fmt: skip
            quantizer.quantize_model()
            quantizer.model.topological_sort()
        return quantizer.model.model

    def _error(self, proto: onnx.ModelProto, samples: Sequence[Arrays]) -> float:
        """Relative error against the float graph."""
        if not self._expected:
            float_run = ort.load(self.path).run
            self._expected = [list(float_run(batch)) for batch in self.samples]
        run = ort.load(proto.SerializeToString()).run
        sums = np.zeros(2)
        for batch, expected in zip(samples, self._expected, strict=False):
            for y, z in zip(expected, run(batch), strict=True):
                sums += ((z.astype(np.float64) - y) ** 2).sum(), (y.astype(np.float64) ** 2).sum()
        return float(np.sqrt(sums[0] / max(sums[1], 1e-30)))


def _ranges(path: Path, samples: Sequence[Arrays], method: CalibrationMethod) -> TensorsData:
    """Range of every tensor; batch by batch, because what is collected at once is held in memory."""
    inputs = [i.name for i in onnx.load(path, load_external_data=False).graph.input]
    with leftovers.folder() as folder, _silent():
        calibrator = create_calibrator(path, None, str(folder / "augmented.onnx"), calibrate_method=method)
        for batch in samples:
            calibrator.collect_data(_Reader(dict(zip(inputs, batch, strict=True))))
        return calibrator.compute_data()


def ranges(values: Iterable[Mapping[str, np.ndarray]], calibrator: str) -> dict[str, tuple[float, float]]:
    """The range of named values in the way that a calibrator takes it, whatever computed them; batch by batch.

    What `quantize` takes from the graph itself, for those who want to compute as the file will.
    """
    if calibrator == "minmax":
        found: dict[str, tuple[float, float]] = {}
        for batch in values:
            for name, array in batch.items():
                low, high = found.get(name, (np.inf, -np.inf))
                found[name] = min(low, float(array.min())), max(high, float(array.max()))
        return found
    settings = {"percentile": (True, 2048), "entropy": (False, 128)}[calibrator]  # as ONNX Runtime's own calibrators have them
    with _silent():
        collector = HistogramCollector(calibrator, *settings, num_quantized_bins=128, percentile=99.999, scenario="same")
        for batch in values:
            collector.collect({name: [array] for name, array in batch.items()})
        return {name: (float(ends[0]), float(ends[1])) for name, ends in collector.compute_collection_result().items()}


class _Reader(CalibrationDataReader):
    """One batch, as ONNX Runtime asks for it."""

    def __init__(self, feeds: dict[str, np.ndarray]):
        self.feeds: dict[str, np.ndarray] | None = feeds

    def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        feeds, self.feeds = self.feeds, None
        return feeds


def _layer_names(path: Path) -> dict[str, str]:
    """Node -> the model's name of the layer, which its weight still has."""
    graph = onnx.load(path, load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    weights = {node.name: [name for name in node.input if name in stored] for node in graph.node}
    return {node: names[0].removesuffix(".weight") for node, names in weights.items() if names and names[0].endswith(".weight")}


@contextmanager
def _silent() -> Iterator[None]:
    """ONNX Runtime's quantizer prints, and logs advice to the root logger."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.CRITICAL)
    try:
        with quiet():
            yield
    finally:
        root.setLevel(before)
