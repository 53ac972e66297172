"""LiteRT in 8 bits by its own quantizer: weights with a scale per channel, activations from their smallest to largest value.

Left to itself the quantizer takes a moving average of ranges, which later batches hardly move: what they hold beyond the range of
the first one would be cut off.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ai_edge_quantizer import quantizer, recipe  # pyright: ignore[reportMissingImports]
from ai_edge_quantizer.algorithm_manager import AlgorithmName  # pyright: ignore[reportMissingImports]
from ai_edge_quantizer.calibrator import Calibrator  # pyright: ignore[reportMissingImports]
from ai_edge_quantizer.qtyping import TFLOperationName  # pyright: ignore[reportMissingImports]
from ai_edge_quantizer.recipe_manager import RecipeManager  # pyright: ignore[reportMissingImports]
from ai_edge_quantizer.utils.qsv_utils import min_max_update  # pyright: ignore[reportMissingImports]
from torch import Tensor

from exporters import capture, litert
from exporters.batching import of_size
from exporters.checked_write import proven
from exporters.exported import Exported
from exporters.request import Request
from exporters.runtimes import litert as runtime
from exporters.standalone import leftovers


def export(request: Request) -> Exported:
    """Write a quantized file for `request.batch` samples at a time; it takes and gives floats.

    Raises:
        ExportError: as for `litert`; too few calibration samples, or a model that cannot be quantized.
        ParityError: its relative error on `samples` is above twice `request.int8_error`.
    """
    ranges = request.ranges
    with leftovers.folder() as folder:
        # The quantizer works on a float file, which only it needs.
        plain = folder / "float.tflite"
        litert.converted(request).export(str(plain))
        made = quantized(plain, of_size(ranges, request.batch))
    return proven(request, lambda to: made.export_model(str(to)), allowed=request.allowed)


def quantized(plain: Path, batches: Iterable[Sequence[Tensor]]) -> Any:
    """A file in float with all that LiteRT can compute in 8 bits in 8 bits."""
    names = runtime.names(plain)
    feeds = [dict(zip(names, (x.numpy() for x in batch), strict=True)) for batch in batches]
    with capture.refusing("This model cannot be quantized for LiteRT"):
        work: Any = quantizer.Quantizer(str(plain))
        work.load_quantization_recipe(recipe.static_wi8_ai8())
        for end in (TFLOperationName.INPUT, TFLOperationName.OUTPUT):  # floats for the caller, as everywhere else
            work.update_quantization_recipe(".*", end, algorithm_key=AlgorithmName.NO_QUANTIZE)
        manager = RecipeManager()
        manager.load_quantization_recipe(work.get_quantization_recipe())
        seen: Any = Calibrator(str(plain), num_threads=1, qsv_update_func=min_max_update)  # its own is a moving average
        seen.calibrate({runtime.SIGNATURE: feeds}, manager)
        return work.quantize(seen.get_model_qsvs())
