"""Every format, a line each: what writes it, what its file is called, where it runs, and what it needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        module: imported when it is asked for.
        ending: of its file, unlike that of every other format.
        runtime: a name in `exporters.runtimes.RUNTIMES`, in which the file is compared with the model.
        needs: modules that have to be there.
        install: the line that installs them.
        lossy: fewer bits than the model: held to a closeness instead of a parity.
        fixed: its file takes the batch size that it was written for.
    """

    module: str
    ending: str
    runtime: str
    needs: tuple[str, ...]
    install: str
    lossy: bool = False
    fixed: bool = False

    @property
    def calibrated(self) -> bool:
        """Whether it takes the ranges of its 8 bits from real inputs."""
        return ".int8" in self.ending


_ONNX = ("onnx", "onnxscript", "onnxruntime")
_GET_ONNX = "pip install onnx onnxscript onnxruntime"
_TORCH, _GET_TORCH = ("torch",), "pip install torch"
_GET_OPENVINO, _GET_EXECUTORCH = "pip install openvino", "pip install executorch"
_EXECUTORCH = ("executorch",)
_LITERT, _GET_LITERT = ("litert_torch", "ai_edge_litert"), "pip install litert-torch ai-edge-litert"

FORMATS: dict[str, Format] = {
    "onnx": Format("exporters.onnx", ".onnx", "ort", _ONNX, _GET_ONNX),
    "onnx-int8": Format("exporters.onnx_int8", ".int8.onnx", "ort", _ONNX, _GET_ONNX, lossy=True),
    "onnx-int8-symmetric": Format("exporters.onnx_int8_symmetric", ".symmetric.int8.onnx", "ort", _ONNX, _GET_ONNX, lossy=True),
    "onnx-fp16": Format("exporters.onnx_fp16", ".fp16.onnx", "ort", _ONNX, _GET_ONNX, lossy=True),
    "openvino": Format("exporters.openvino", ".xml", "openvino", ("openvino",), _GET_OPENVINO),
    "openvino-int8": Format(
        "exporters.openvino_int8", ".int8.xml", "openvino", ("openvino", "nncf"), f"{_GET_OPENVINO} nncf", lossy=True
    ),
    "executorch": Format("exporters.executorch", ".pte", "executorch", _EXECUTORCH, _GET_EXECUTORCH, fixed=True),
    "executorch-int8": Format(
        "exporters.executorch_int8",
        ".int8.pte",
        "executorch",
        (*_EXECUTORCH, "torchao"),
        _GET_EXECUTORCH,
        lossy=True,
        fixed=True,
    ),
    "litert": Format("exporters.litert", ".tflite", "litert", _LITERT, _GET_LITERT, fixed=True),
    "litert-int8": Format(
        "exporters.litert_int8", ".int8.tflite", "litert", (*_LITERT, "ai_edge_quantizer"), _GET_LITERT, lossy=True, fixed=True
    ),
    "pt2": Format("exporters.pt2", ".pt2", "torch", _TORCH, _GET_TORCH),
    "torchscript": Format("exporters.torchscript", ".torchscript", "torch", _TORCH, _GET_TORCH),
}
