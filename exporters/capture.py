"""A model as an exporter takes it: a frozen copy on the CPU, proven to run on one sample and on several, with named outputs."""

from __future__ import annotations

import copy
import inspect
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from exporters.errors import ExportError, first_line

_PLAIN = int | float | str | None
TAKE_BATCH = "If a batch size is written into the code (a reshape, a loop), take it from the input instead: x.shape[0] or -1."


@dataclass(frozen=True)
class Subject:
    """What is exported.

    Attributes:
        model: a copy in eval mode on the CPU.
        batch: example inputs of at least two samples.
        inputs: names of the inputs.
        outputs: names of the outputs.
        flatten: lists the tensors that the model returns, in the order of `outputs`.
    """

    model: nn.Module
    batch: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    flatten: Callable[[object], list[Tensor]]


def subject(model: nn.Module, inputs: Sequence[Tensor]) -> Subject:
    """Prepare a model; it is not changed.

    Raises:
        ExportError: it does not run on a single sample, or on several.
    """
    model = frozen(model)
    batch = tuple(_at_least_two(x.detach().cpu()) for x in inputs)
    returned = _returned(model, batch)
    names, flatten = _outputs(returned)
    if not all(leaf is None or isinstance(leaf, Tensor) for leaf in tree_flatten(returned)[0]):
        model = _Tensors(model, flatten)  # exporters stop at a number
    return Subject(model, batch, tuple(_numbered("input", len(batch))), tuple(names), flatten)


class _Tensors(nn.Module):
    """A model without what it returns beside tensors, such as a stride or a name."""

    def __init__(self, model: nn.Module, flatten: Callable[[object], list[Tensor]]):
        super().__init__()
        self.model, self.flatten = model, flatten

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        return self.flatten(self.model(*inputs))


def frozen(model: nn.Module) -> nn.Module:
    """A copy on the CPU, in eval mode, without in-place activations.

    The exporter takes an in-place activation apart and puts it together again later: the same file, but a third slower to make
    (measured on MobileNetV3).
    """
    # The caller's model may be on another device, in train mode, or used again.
    made = copy.deepcopy(model).cpu().eval()
    for module in made.modules():
        if getattr(module, "inplace", False) is True:
            vars(module)["inplace"] = False
    return made


def program(of: Subject, *, most: int | None = None) -> torch.export.ExportedProgram:
    """The captured graph, its batch dynamic (from 1 to `most`, where a runtime needs an upper end).

    Raises:
        ExportError: torch.export does not take the model.
    """
    with refusing("torch.export does not take this model"):
        return torch.export.export(of.model, of.batch, dynamic_shapes=per_argument(of, most))


def per_argument(of: Subject, most: int | None = None) -> tuple[Any, ...]:
    """Dynamic batches in the shape of the signature: `forward(*inputs)` takes them as one tuple."""
    # min=1: otherwise torch.export assumes 2, and a runtime may refuse a single sample.
    dynamic = tuple({0: torch.export.Dim("batch", min=1, max=most)} for _ in of.batch)
    parameters = inspect.signature(of.model.forward).parameters.values()
    return (dynamic,) if any(p.kind is p.VAR_POSITIONAL for p in parameters) else dynamic


def reason(error: BaseException) -> str:
    """The cause in one sentence, with the node at which it broke where torch names it."""
    # The first cause is where it broke; torch wraps it several times.
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    # Colors of a terminal have no place in a message.
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(str(cause) for cause in causes))
    node = re.search(r"(?:While executing|when translating node|Failed to decompose node) (%[^\n]*)", text)
    if "GuardOnDataDependent" in text or "data-dependent" in text:
        at = f" (at node {node.group(1).strip()[:80]})" if node else ""
        return f"control flow in it depends on tensor values{at}. Needed is a forward without that, or torch.cond in its place."
    constant = re.search(r"[^\n]*(?:marked .*batch.* as dynamic but|was inferred to be a constant|specialized)[^\n]*", text)
    if constant:
        return f"its batch size is a constant. {TAKE_BATCH} torch says: {constant.group(0).strip()[:300]}"
    return f"{type(causes[-1]).__name__}: {first_line(causes[-1])}" + (
        f" (at node {node.group(1).strip()[:200]})" if node else ""
    )


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Somebody else's converter at work, quietly; what it raises, whatever that is, is told as `what` and the cause.

    Raises:
        ExportError: it failed.
    """
    try:
        with quiet():
            yield
    except ExportError:
        # Refusals of our own pass as they are.
        raise
    except Exception as error:
        raise ExportError(f"{what}: {reason(error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters narrate; what matters comes back as a value or an exception."""
    # Loggers narrate past stderr where the application has given them handlers.
    names = ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir", "nncf", "executorch", "torchao")
    loggers = [logging.getLogger(name) for name in names]
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


def _at_least_two(example: Tensor) -> Tensor:
    """torch.export takes a batch of 1 for a constant, so the example has more."""
    return example if len(example) > 1 else torch.cat([example, example])


def _returned(model: nn.Module, batch: tuple[Tensor, ...]) -> object:
    """What the model returns for a batch, after proof that it takes a single sample as well."""
    # One sample first: what cannot run alone usually has a batch size written into its code.
    for inputs in (tuple(x[:1] for x in batch), batch):
        try:
            with quiet(), torch.inference_mode():
                returned = model(*inputs)
        except Exception as error:
            sizes = " and ".join(str(tuple(x.shape)) for x in inputs)
            raise ExportError(f"The model does not run on inputs of shape {sizes}: {first_line(error)}. {TAKE_BATCH}") from error
    return returned


def _outputs(returned: object) -> tuple[list[str], Callable[[object], list[Tensor]]]:
    """Names of the tensors that a model returns, and the function that lists them in that order."""

    def flatten(value: object) -> list[Tensor]:
        # Only tensors have a place in a file; flags and None are left out.
        return [leaf for leaf in tree_flatten(value)[0] if isinstance(leaf, Tensor)]

    count = len(flatten(returned))
    if isinstance(returned, dict) and all(isinstance(value, Tensor | _PLAIN) for value in returned.values()):
        return [str(key) for key, value in returned.items() if isinstance(value, Tensor)], flatten
    return _numbered("output", count), flatten


def _numbered(stem: str, count: int) -> list[str]:
    return [stem] if count == 1 else [f"{stem}_{i}" for i in range(count)]
