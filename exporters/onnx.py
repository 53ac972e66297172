"""ONNX by torch's graph exporter: dynamic batch, kept names, checked, one file.

    torch.export -> ONNX graph, constants and batch norms folded -> metadata -> checker -> parity -> rename into place

The exporter writes into every node where in the user's source it came from; that goes (it holds paths of the machine and doubles
small files). Inputs are named `input` (`input_0`, `input_1`, ... if there are several), outputs `output` (`output_0`, ...) or,
where the model returns a dictionary of tensors, by its keys. Weights keep their names unless folded. Equal models give equal
bytes.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import io
import logging
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx.helper
import onnxruntime
import onnxscript  # noqa: F401  # pyright: ignore[reportUnusedImport]  torch needs it later: a missing one should show now
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from exporters import parity
from exporters.errors import ExportError
from exporters.exported import Exported

OPSETS = range(18, 26)
"""Operator sets that torch writes or converts to; it has no implementation below 18."""
SINGLE_FILE_BYTES = 1_900_000_000
"""One protobuf file holds 2 GiB; above this the weights go to a second file beside it."""

TAKE_BATCH = "If a batch size is written into the code (a reshape, a loop), take it from the input instead: x.shape[0] or -1."


def versions() -> str:
    """The packages at work."""
    installed = {name: version(name) for name in ("torch", "onnx", "onnxscript")} | {"onnxruntime": onnxruntime.__version__}
    return ", ".join(f"{name} {number}" for name, number in installed.items())


def export(
    model: nn.Module,
    inputs: Sequence[Tensor],
    path: Path,
    *,
    metadata: Mapping[str, str],
    samples: Iterable[Sequence[Tensor]] | None = None,
    opset: int = 18,
    check_parity: bool = True,
) -> Exported:
    """Write and prove an ONNX file. The batch (first axis of every input) is dynamic, every other size fixed.

    Raises:
        ExportError: unsupported opset, a model that torch.export or the ONNX converter does not take, an unwritable path.
        ParityError: ONNX Runtime computes something else from the file.
    """
    if opset not in OPSETS:
        raise ExportError(f"The opset is {opset}; needed is one from {OPSETS[0]} to {OPSETS[-1]}.")
    frozen = _frozen(model)
    batch = tuple(_at_least_two(x.detach().cpu()) for x in inputs)
    output_names, flatten = _outputs(_returned(frozen, batch))
    proto = _convert(frozen, batch, output_names, opset)
    _clean(proto, metadata)
    with _staged(path) as staged:
        _write(proto, staged)
        del proto
        _check(staged, path)
        found = None
        if check_parity:
            found = parity.check(_session(staged, path), frozen, samples or (tuple(inputs),), flatten, names=output_names)
        size = sum(file.stat().st_size for file in staged.parent.iterdir())
        digest = _sha256(staged)
    return Exported("onnx", path, digest, size, opset, found)


def _frozen(model: nn.Module) -> nn.Module:
    """A copy on the CPU, in eval mode, without in-place activations.

    The exporter takes an in-place activation apart and puts it together again later: the same file, but a third slower to make
    (measured on MobileNetV3).
    """
    frozen = copy.deepcopy(model).cpu().eval()
    for module in frozen.modules():
        if getattr(module, "inplace", False) is True:
            vars(module)["inplace"] = False
    return frozen


def _at_least_two(example: Tensor) -> Tensor:
    """torch.export takes a batch of 1 for a constant, so the example has more."""
    return example if len(example) > 1 else torch.cat([example, example])


def _returned(model: nn.Module, batch: tuple[Tensor, ...]) -> object:
    """What the model returns for a batch, after proof that it takes a single sample as well."""
    for inputs in (tuple(x[:1] for x in batch), batch):
        try:
            with _quiet(), torch.inference_mode():
                returned = model(*inputs)
        except Exception as error:
            sizes = " and ".join(str(tuple(x.shape)) for x in inputs)
            raise ExportError(f"The model does not run on inputs of shape {sizes}: {_line(error)}. {TAKE_BATCH}") from error
    return returned


def _outputs(returned: object) -> tuple[list[str], Callable[[object], list[Tensor]]]:
    """Names of the tensors that a model returns, and the function that lists them in that order."""

    def flatten(value: object) -> list[Tensor]:
        return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]

    count = len(flatten(returned))
    if isinstance(returned, dict) and all(isinstance(value, Tensor) for value in returned.values()):
        return [str(key) for key in returned], flatten
    return _numbered("output", count), flatten


def _numbered(stem: str, count: int) -> list[str]:
    return [stem] if count == 1 else [f"{stem}_{i}" for i in range(count)]


def _convert(model: nn.Module, batch: tuple[Tensor, ...], output_names: list[str], opset: int) -> onnx.ModelProto:
    names = _numbered("input", len(batch))
    dynamic = tuple({0: torch.export.Dim("batch", min=1)} for _ in batch)
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                batch,
                dynamo=True,
                opset_version=opset,
                input_names=names,
                output_names=output_names,
                dynamic_shapes=_per_argument(model, dynamic),
                optimize=True,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(f"This model does not export to ONNX: {_reason(error)}") from error
    assert program is not None
    proto = program.model_proto
    written = next(o.version for o in proto.opset_import if o.domain == "")
    if written != opset:
        raise ExportError(f"The model could not be converted to opset {opset} (it stands at {written}). Ask for {written}.")
    return proto


def _per_argument(model: nn.Module, dynamic: tuple[Any, ...]) -> tuple[Any, ...]:
    """torch.export wants the shape of the signature: `forward(*inputs)` takes them as one tuple."""
    parameters = inspect.signature(model.forward).parameters.values()
    return (dynamic,) if any(p.kind is p.VAR_POSITIONAL for p in parameters) else dynamic


def _reason(error: BaseException) -> str:
    """The cause in one sentence, with the node at which it broke where torch names it."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(str(cause) for cause in causes))
    node = re.search(r"(?:While executing|when translating node|Failed to decompose node) (%[^\n]*)", text)
    if "GuardOnDataDependent" in text or "data-dependent" in text:
        at = f" (at node {node.group(1).strip()[:80]})" if node else ""
        return f"control flow in it depends on tensor values{at}. Needed is a forward without that, or torch.cond in its place."
    constant = re.search(r"[^\n]*(?:marked .*batch.* as dynamic but|was inferred to be a constant|specialized)[^\n]*", text)
    if constant:
        return f"its batch size is a constant. {TAKE_BATCH} torch says: {constant.group(0).strip()[:300]}"
    return f"{type(causes[-1]).__name__}: {_line(causes[-1])}" + (f" (at node {node.group(1).strip()[:200]})" if node else "")


def _line(error: BaseException) -> str:
    """The first line of a message."""
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _clean(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    """Drop what only the exporter's authors need, and write the caller's metadata."""
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
    onnx.helper.set_model_props(proto, {key: str(value) for key, value in sorted(metadata.items())})


@contextmanager
def _staged(path: Path) -> Iterator[Path]:
    """A file of the same name in a folder of its own beside `path`; moved into place when the block ends well."""
    if path.is_dir():
        raise ExportError(f"{path} is a folder; needed is the path of a file, such as {path / 'model.onnx'}.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise ExportError(f"{path} cannot be written ({error.strerror or error}). Give a path in a folder that can.") from error
    try:
        yield folder / path.name
        # The weights' file first: a model file never stands without them.
        for file in sorted(folder.iterdir(), key=lambda f: f.name == path.name):
            os.replace(file, path.parent / file.name)
    except OSError as error:
        raise ExportError(f"{path} could not be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(proto: onnx.ModelProto, path: Path) -> None:
    weights = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    if weights <= SINGLE_FILE_BYTES:
        onnx.save_model(proto, path)
    else:
        onnx.save_model(proto, path, save_as_external_data=True, all_tensors_to_one_file=True, location=f"{path.name}.data")


def _check(staged: Path, path: Path) -> None:
    try:
        onnx.checker.check_model(str(staged), full_check=True)
    except Exception as error:
        raise ExportError(f"The ONNX checker refuses the file for {path}: {error}") from error


def _session(staged: Path, path: Path) -> parity.Run:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session: Any = onnxruntime.InferenceSession(staged, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"ONNX Runtime {onnxruntime.__version__} does not open the file for {path}: {error}") from error
    names = [i.name for i in session.get_inputs()]

    def run(arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        try:
            return session.run(None, dict(zip(names, arrays, strict=True)))
        except Exception as error:
            sizes = " and ".join(str(array.shape) for array in arrays)
            raise ExportError(f"ONNX Runtime cannot run {path} on inputs of shape {sizes}: {_line(error)}") from error

    return run


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter narrates; what matters comes back as a value or an exception."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
