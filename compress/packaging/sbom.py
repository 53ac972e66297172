"""A bill of materials: what is in a package and what runs it, as CycloneDX 1.5 in JSON (https://cyclonedx.org/docs/1.5/json/).

Holds no time and no serial number, which would make every build another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from compress.report.records import Environment

SCRIPT_LICENSE = "Apache-2.0"
NOASSERTION = "NOASSERTION"
"""Where nobody said under which licence a model is."""


def sbom(name: str, license: str, files: Mapping[str, bytes], models: Sequence[str], environment: Environment) -> dict[str, Any]:
    """The document.

    Args:
        name: of the model.
        license: of the model, as an SPDX expression.
        files: everything in the package so far.
        models: the names of those that are models.
        environment: where the run was made: the versions that its models were compared in.
    """
    runtimes = {"onnxruntime": environment.onnxruntime, "onnx": environment.onnx}
    run_by_onnxruntime = [path for path in models if path.endswith(".onnx") and environment.onnxruntime]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {"type": "application", "bom-ref": "package", "name": name},
            "tools": {"components": [{"type": "application", "name": "compress", "version": environment.compress}]},
        },
        "components": [
            *(_file(path, content, license, path in models) for path, content in sorted(files.items())),
            *(_library(package, version) for package, version in sorted(runtimes.items()) if version),
        ],
        "dependencies": [
            {"ref": "package", "dependsOn": sorted(files)},
            *({"ref": path, "dependsOn": ["pkg:onnxruntime"]} for path in run_by_onnxruntime),
        ],
    }


def _file(path: str, content: bytes, license: str, is_model: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": "machine-learning-model" if is_model else "file",
        "bom-ref": path,
        "name": path,
        "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(content).hexdigest()}],
    }
    said = SCRIPT_LICENSE if path.endswith(".py") else license if is_model else NOASSERTION
    return {**found, "licenses": [{"expression": said}]} if said != NOASSERTION else found


def _library(package: str, version: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{package}@{version}"
    return {"type": "library", "bom-ref": f"pkg:{package}", "name": package, "version": version, "purl": purl}
