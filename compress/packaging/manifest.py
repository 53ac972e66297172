"""The manifest of a package: what is in it, what it takes, and what it did where it was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from compress.packaging.samples import Samples
from compress.packaging.sbom import SCRIPT_LICENSE
from compress.report.records import ExportRecord, Outcome, Report
from exporters.standalone.contents import SCHEMA

FORMULA = "(x - mean) / std, x = pixel / 255 for 8-bit images"
DECISIONS = {
    "largest": "The class is the number of the largest output, from 0.",
    "one above 0": "The output is a logit of two classes: above 0 it is class 1, else class 0.",
    "all above 0": "Every label whose output, a logit, is above 0 holds; any number of them may.",
}
"""What outputs mean, by the name that a program reads."""


def manifest(
    name: str,
    license: str,
    report: Report,
    models: Mapping[str, ExportRecord],
    samples: Samples,
    outputs: Sequence[int],
    entries: Mapping[str, list[dict[str, Any]]],
    files: Mapping[str, bytes],
) -> dict[str, Any]:
    """The document.

    Args:
        name: of the model.
        license: of the model, as an SPDX expression.
        report: of the run.
        models: path in the package -> what was exported there.
        samples: the inputs that travel along.
        outputs: shape of the first output for one sample.
        entries: path of a model -> its samples, outputs and tolerances; a model that no script here runs has none.
        files: everything else in the package.
    """
    quality = report.result.quality
    return {
        "schema": SCHEMA,
        "kind": "compress package",
        "name": name,
        "made_by": {"compress": report.environment.compress},
        "licenses": {"model": license, "scripts": SCRIPT_LICENSE},
        "models": [_model(path, export, entries.get(path), files[path]) for path, export in models.items()],
        "inputs": [_input(k, array.shape, str(array.dtype), samples) for k, array in enumerate(samples.inputs[0])],
        "task": samples.task or None,
        "classes": None if samples.classes is None else list(samples.classes),
        "contract": {"kept": report.outcome is Outcome.KEPT, "outcome": report.outcome.value, "verdict": report.verdict},
        "warnings": list(report.warnings),
        "decision": decision(samples, outputs),
        "quality": None if quality is None else quality.model_dump(mode="json"),
        "latency": _latency(report),
        "environment": report.environment.model_dump(mode="json"),
        "method": report.method,
        "plan_sha256": report.plan_sha256,
        "files": {
            path: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)} for path, content in files.items()
        },
    }


def _model(path: str, export: ExportRecord, entries: Sequence[dict[str, Any]] | None, content: bytes) -> dict[str, Any]:
    return {
        "path": path,
        "format": export.format,
        "runtime": "onnxruntime" if entries is not None else export.format,
        "opset": export.opset,
        "sha256": export.sha256,
        "bytes": len(content),
        "samples": list(entries or ()),
    }


def _input(number: int, shape: Sequence[int], dtype: str, samples: Samples) -> dict[str, Any]:
    return {
        "number": number,
        "shape": ["batch", *shape[1:]],
        "dtype": dtype,
        "layout": "NCHW" if len(shape) == 4 else None,
        "normalization": None
        if samples.mean is None
        else {
            "formula": FORMULA,
            "mean": list(samples.mean),
            "std": list(samples.std or ()),
        },
        "preparation": preparation(samples) if number == 0 else None,
    }


def preparation(samples: Samples) -> dict[str, Any] | None:
    """How a picture becomes the first input."""
    made, shape = samples.preparation, samples.inputs[0][0].shape
    if made is None or samples.mean is None:
        return None
    return {
        "origin": made.origin,
        "size": list(shape[2:]) or None,
        "resize": made.resize,
        "filter": made.filter,
        "color": made.color,
        "upright": made.upright,
        "steps": list(made.steps(shape[1:], samples.mean, samples.std or ())),
    }


def decision(samples: Samples, outputs: Sequence[int]) -> dict[str, str] | None:
    """How the outputs are read."""
    if samples.task == "multilabel":
        rule = "all above 0"
    elif samples.task == "classification" and outputs:
        rule = "one above 0" if len(outputs) == 1 or outputs[1] == 1 else "largest"
    else:
        return None
    return {"rule": rule, "meaning": DECISIONS[rule]}


def _latency(report: Report) -> dict[str, Any] | None:
    latency = report.result.latency
    if latency is None:
        return None
    return {**latency.model_dump(mode="json"), "device": report.environment.gpu or report.environment.cpu}


def text(document: Mapping[str, Any]) -> bytes:
    """The bytes of a JSON document, the same for the same content."""
    return (json.dumps(document, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n").encode()


def sums(files: Mapping[str, bytes]) -> bytes:
    """The list of hashes, as `sha256sum -c` reads it."""
    return "".join(f"{hashlib.sha256(files[name]).hexdigest()}  {name}\n" for name in sorted(files)).encode()
