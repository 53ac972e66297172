"""What was probably meant by a value that is none: one suggestion for the end of a refusal."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from compress.measure.units import BYTES, SHARES, amount

_UNITS = {
    **dict.fromkeys(("mac", "flops", "flop", "ops", "gmacs", "gflops", "compute"), "macs"),
    **dict.fromkeys(("parameters", "parameter", "param", "p"), "params"),
    **dict.fromkeys(("bytes", "filesize", "file", "disk"), "size"),
    **dict.fromkeys(("sparsity", "density"), "weights"),
    **dict.fromkeys(("relu", "relus", "depth", "layers"), "activations"),
}
_FORMATS = {
    **dict.fromkeys(("tflite", "tf-lite", "tensorflow-lite"), "litert"),
    **dict.fromkeys(("int8", "onnx_int8", "qdq", "quantized"), "onnx-int8"),
    **dict.fromkeys(("fp16", "half", "onnx_fp16", "float16"), "onnx-fp16"),
    **dict.fromkeys(("pte", "edge", "executorch-xnnpack"), "executorch"),
    **dict.fromkeys(("ir", "ov", "vino", "intel"), "openvino"),
    **dict.fromkeys(("pt", "torch", "export", "torch.export"), "pt2"),
    **dict.fromkeys(("jit", "script", "ts"), "torchscript"),
    **dict.fromkeys(("trt", "tensorrt", "engine"), "onnx"),
}


_PERCENT = 5
"""From here on a share is taken for a percentage that lacks its sign."""


def target(text: str, units: Iterable[str]) -> str:
    """What to say of a --target that cannot be read; empty where nothing comes close."""
    unit, equals, value = (part.strip() for part in text.lower().partition("="))
    if unit in ("ms", "time", "milliseconds"):
        return f" Did you mean latency={value.removesuffix('ms').strip() or 5}ms?"
    if unit == "latency" and (amount(value, SHARES) or 0) > 1:
        return f" Did you mean {unit}={value}ms?"
    if unit in ("speedup", "speed-up", "speed"):
        return " A speed-up is no target: give latency=FRACTION, such as latency=0.5 for twice as fast."
    if not equals:
        unit, value = "", unit
    meant = unit if unit in units else _UNITS.get(unit) or next(iter(difflib.get_close_matches(unit, units, 1)), "")
    share, size = amount(value, SHARES), amount(value, BYTES)
    if share is None and size is not None and meant in ("", "size"):
        return f" Did you mean size={value.upper()}?"
    if share is None or (unit and not meant):
        return ""
    meant = meant or "macs"
    if meant == "size":
        return f" Did you mean size={share:g}MB?"
    # 25 is meant in percent; 1.5 may be anything, and is told the range.
    share = share / 100 if _PERCENT <= share <= 100 else share
    return f" Did you mean {meant}={share:g}?" if 0 < share < 1 else ""


def one_of(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is none of some; empty where nothing comes close."""
    close = difflib.get_close_matches(name.lower(), list(known), 1)
    return f" Did you mean {close[0]}?" if close else ""


def export(name: str, known: Iterable[str]) -> str:
    """What to say of a format that there is not; empty where nothing comes close."""
    close = _FORMATS.get(name.lower()) or next(iter(difflib.get_close_matches(name.lower(), known, 1)), "")
    return f" Did you mean {close}?" if close else ""
