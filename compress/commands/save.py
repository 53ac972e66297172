"""`compress.save`: a traced model, or a module and an example of its inputs, as a checkpoint without a class."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.fx import GraphModule

from compress.artifact import Artifact
from compress.checkpoint.load.live_module import as_module, examples, in_memory
from compress.checkpoint.save import save as saved
from compress.detection import wholes


def save(
    model: nn.Module | Artifact, path: str | Path, *, inputs: Tensor | tuple[Tensor, ...] | list[Tensor] | None = None
) -> Path:
    """Write a model so that `load` opens it, trainable, without the class that it came from.

    Args:
        model: a traced model, as `load` and `run` give it, an artifact, or any module; it is not changed.
        path: the folder, such as out/model.compressed; an older checkpoint there is replaced.
        inputs: for a module that is not traced yet: an example of each input, batch first, such as torch.zeros(1, 3, 224, 224).
            For a detector a list of images: of it the part that computes tensors is written, which needs no class.

    Raises:
        UnsupportedModel: it cannot be traced, or a layer or an operation cannot be stored without code.
        NotWritten: the folder cannot be written.
        BadInput: no module, a module without examples, or something else is in the folder's place.
    """
    if isinstance(model, Artifact) or (isinstance(model, GraphModule) and inputs is None):
        return saved(model, path)
    taken, seen = wholes.part_of(as_module(model), inputs)
    wholes.refuse(taken)
    return saved(in_memory(taken, inputs=() if seen is None else examples(seen)), path)
