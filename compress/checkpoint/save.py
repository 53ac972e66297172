"""The class-free checkpoint on disk: `graph.json`, `weights.safetensors` and their `SHA256SUMS` in a folder `model.compressed`.

The folder is written beside its place under another name, flushed to the disk, read back as a model, and only then renamed.
An old checkpoint of the same name stays until the new one is complete; a failure leaves nothing behind.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.fx import GraphModule

from compress.artifact import Artifact
from compress.checkpoint.deserialize import from_json, stored_tensors
from compress.checkpoint.serialize import to_json
from compress.checkpoint.sums import FILES, GRAPH, SUMS, WEIGHTS, listed
from compress.errors import BadInput, NotWritten
from exporters.standalone import leftovers


def save(model: GraphModule | Artifact, path: str | Path) -> Path:
    """Write a model so that `load` opens it, trainable, without the class that it came from.

    Args:
        model: a traced model or an artifact; it is not changed.
        path: the folder, such as out/model.compressed; an older checkpoint there is replaced.

    Raises:
        UnsupportedModel: a layer or an operation that cannot be stored without code.
        NotWritten: the folder cannot be written.
        BadInput: something else is in its place.
    """
    module, inputs = (model.module, model.inputs) if isinstance(model, Artifact) else (model, ())
    path = Path(path)
    text, tensors = to_json(module, inputs), _tensors(module)
    from_json(text, tensors)  # what cannot be read back is not written
    try:
        require_place(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=leftovers.hidden(path.name), dir=path.parent))
        try:
            _write(part, text, tensors)
            _replace(path, part)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise NotWritten(
            f"The model cannot be written to {path} ({reason}). Give a folder that is writable and has room."
        ) from error
    return path


def require_place(path: Path) -> None:
    """Refuse a place that `save` would refuse, before what is to be saved is made.

    Raises:
        BadInput: something else than an older checkpoint is there.
    """
    # An older checkpoint holds these files and no others; anything else is not ours to delete.
    ours = path.is_dir() and {p.name for p in path.iterdir()} <= set(FILES)
    # lexists: no folder can be put where a link leads nowhere.
    if os.path.lexists(path) and not ours:
        what = "a folder with other files" if path.is_dir() else "a file" if path.exists() else "a link that leads nowhere"
        raise BadInput(f"The place for the model, {path}, is {what}; needed is a new name, or an older checkpoint.")


def _tensors(module: GraphModule) -> dict[str, Tensor]:
    """Every tensor once, under its first name, on the CPU and with memory of its own."""
    first: dict[int, str] = {}
    for name, tensor, _ in stored_tensors(module):
        first.setdefault(id(tensor), name)
    tensors = {name: tensor for name, tensor, _ in stored_tensors(module) if first[id(tensor)] == name}
    # clone: safetensors refuses tensors that share memory, such as views.
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}


def _write(folder: Path, text: str, tensors: dict[str, Tensor]) -> None:
    # One entry: safetensors writes several in an order that changes from process to process, and equal models give equal bytes.
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / GRAPH).write_text(text, encoding="utf-8")
    (folder / SUMS).write_text(listed(folder), encoding="ascii")
    # mkdtemp lets nobody else read; a checkpoint has the rights of any other new file.
    folder.chmod(0o777 & ~_umask())
    (folder / WEIGHTS).chmod(0o666 & ~_umask())
    for name in (*FILES, "."):
        _flush(folder / name)


def _replace(path: Path, part: Path) -> None:
    """Put the finished folder in its place; the old one is away for the time of one rename only."""
    # In the same parent, so that it is a rename and not a copy.
    old = Path(tempfile.mkdtemp(prefix=leftovers.hidden(f"{path.name}.old"), dir=path.parent)) / path.name
    try:
        if path.exists():
            path.rename(old)
        try:
            part.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        _flush(path.parent)
    finally:
        shutil.rmtree(old.parent, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
