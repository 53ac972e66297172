"""A module in memory, taken as a model file is: a copy of it, checked, on the CPU, fp32, in eval mode."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from os import PathLike
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim.swa_utils import AveragedModel

from compress.artifact import Artifact
from compress.checkpoint.load import state_dict
from compress.checkpoint.load.model import Loaded, OfData, artifact_of
from compress.errors import BadInput, CompressWarning
from compress.graph.trace.sharing import copied
from compress.graph.trace.wrapped import unwrapped

WHERE = "The model"


def take(model: nn.Module) -> Loaded:
    """A copy of a module that shares nothing with it: the module keeps its weights, device, modes and gradients.

    Raises:
        BadInput: it cannot be copied, or has weights that no model file may have.
        UnsupportedModel: TorchScript, or a quantized model.
    """
    inner = inside(model)
    notes = [] if inner is model else [f"The module was taken out of its {type(model).__name__} wrapper."]
    # With what hangs on it: hooks, and buffers that a forward writes to.
    try:
        own = copied(inner).to("cpu")
    except MemoryError:
        raise
    except Exception as error:  # attributes of a user's own may raise anything
        first = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise BadInput(
            f"{WHERE} cannot be copied ({type(error).__name__}: {first}). Take out of it what copy.deepcopy refuses, such as "
            "outputs that it keeps, or save its state_dict and give the file with arch=."
        ) from error
    for told in comes_back_otherwise(model):
        warnings.warn(told, CompressWarning, stacklevel=2)
    return Loaded(own, (*notes, *state_dict.settle(own, WHERE)))


def comes_back_otherwise(model: nn.Module) -> list[str]:
    """What to say where whoever goes on with the result in the same program meets another type of weights there."""
    after = "and what comes back is float32, too; .half(), or .to() of the type, changes it back."
    return [f"{said.rstrip('.')}, {after}" for said in state_dict.other_types(inside(model).parameters())]


def inside(model: nn.Module) -> nn.Module:
    """The module inside of wrappers (torch.compile, DataParallel, averages), whose names are those of the edits.

    Raises:
        BadInput: weights without data.
        UnsupportedModel: TorchScript, or a quantized model.
    """
    model = unwrapped(model)
    wrapped = isinstance(model, nn.DataParallel | DistributedDataParallel | AveragedModel)
    return inside(cast(nn.Module, model.module)) if wrapped else model


def in_memory(
    model: nn.Module,
    *,
    inputs: Sequence[Tensor] = (),
    shapes: Sequence[tuple[int, ...]] = (),
    output: str | None = None,
    of_data: OfData = "no",
) -> Artifact:
    """A module in memory as an artifact; arguments as for `open_artifact`, and `inputs`: examples, batch first.

    Raises:
        BadInput: its inputs are not known, or it does not run on them.
        UnsupportedModel: it cannot be traced, its output is random, or depends on the rest of the batch.
    """
    loaded = take(model)
    found = artifact_of(loaded, shapes, inputs=inputs, output=output, of_data=of_data)
    if found is None:
        raise BadInput(
            "The input size of the model is not known. Give an example, such as inputs=torch.zeros(1, 3, 224, 224), or data."
        )
    return found


def examples(given: object) -> tuple[Tensor, ...]:
    """Example inputs as a tuple: one tensor, or one for each input of the model, batch first.

    Raises:
        BadInput: no tensors, or without an axis of samples.
    """
    several = cast("Sequence[Any]", given) if isinstance(given, tuple | list) else (given,)
    if not several or not all(isinstance(x, Tensor) and x.ndim and len(x) for x in several):
        kinds = ", ".join(type(x).__name__ for x in several) or "nothing"
        raise BadInput(
            f"inputs is {kinds}; needed are example tensors, one for each input of the model, samples along the first axis, such "
            "as inputs=torch.zeros(1, 3, 224, 224)."
        )
    return tuple(cast(Tensor, x).detach().cpu() for x in several)


def as_module(model: object) -> nn.Module:
    """A module where a path will not do.

    Raises:
        BadInput, UnsupportedModel: as `refuse_other`; or it is a path.
    """
    refuse_other(model)
    if not isinstance(model, nn.Module):
        raise BadInput(f"The model is the path {model}; needed is a module here. Open the file first, as with compress.load.")
    return model


def refuse_other(model: object) -> None:
    """Refuse what is neither a module nor a path.

    Raises:
        BadInput: says what to give instead.
        UnsupportedModel: TorchScript, or a quantized model.
    """
    if isinstance(model, nn.Module):
        unwrapped(model)
        return
    if isinstance(model, str | PathLike):
        return
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise BadInput(f"The model is the class {model.__name__}; needed is a module of it. Give {model.__name__}(...).")
    if isinstance(model, dict):
        raise BadInput(
            "The model is a dict; needed is a module, or the path of a model file. Load the weights into the module "
            "(module.load_state_dict), and give that."
        )
    raise BadInput(
        f"The model is a {type(model).__name__}; needed is a torch.nn.Module, or the path of a model file. Give one of these."
    )


def fingerprint(model: nn.Module) -> str:
    """Twelve digits that other weights, or a graph of other operations, would not have."""
    found = hashlib.sha256(str(model.graph).encode() if isinstance(model, GraphModule) else str(model).encode())
    for name, value in sorted(model.state_dict().items()):
        # Others are refused with a sentence of their own when the model is taken.
        if (
            isinstance(value, Tensor)
            and not (is_lazy(value) or value.is_meta or value.is_quantized)
            and value.layout == torch.strided
        ):
            found.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:12]
