"""The settings as keyword arguments: what editors complete and type checkers check, and what `help` says of them.

`Settings` repeats the fields of `Recipe`, because a type checker reads no pydantic field as a keyword; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import cleandoc
from os import PathLike
from textwrap import fill
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar

from compress.recipe import Recipe

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from torch.utils.data import DataLoader, Dataset

    from compress.data import Data

    Array = Tensor | np.ndarray[Any, Any]
    """Samples along the first axis."""
    Samples = (
        Array
        | tuple[Array | tuple[Array, ...], Array | None]
        | DataLoader[Any]
        | Dataset[Any]
        | Iterable[Any]
        | Callable[[], Any]
    )
    """One part of the data; see `compress.data.objects`."""
    DataLike = str | PathLike[str] | Data | Samples | Mapping[str, Samples]
    """A source by name, or what is in memory."""

F = TypeVar("F", bound=Callable[..., Any])
_WIDTH, _INDENT = 100, " " * 8


class StepSettings(TypedDict, total=False):
    """Settings that no function has an argument of its own for; `inputs` may be an example of the model's inputs."""

    # model
    arch: str | None
    arch_kwargs: Mapping[str, Any]
    trust_pickle: bool
    trust_recipe: bool
    weights_entry: str | None
    output: str | None
    input_shape: str | Sequence[int] | Sequence[Sequence[int] | str]
    # data
    metric: str
    allow_doubtful: bool
    loss: str
    # what to do
    method: str
    tolerance: float | None
    inputs: Literal["sequential", "original"] | Tensor | Sequence[Tensor]
    order: Literal["width-depth", "depth-width", "auto"]
    iterations: int
    cheap: bool
    linearize: Literal["affine", "identity", "gradual"]
    entropy: Literal["pooled", "easier", "egp"]
    spatial: Literal["pairwise", "aura"]
    reward: Literal["entropy", "accuracy", "mixed"]
    episodes: int
    initial: str | None
    variants: str | Sequence[str]
    structure: Literal["weights", "channels"]
    scope: Literal["layer", "global"]
    prune: float
    prune_of: Literal["remaining", "original"]
    rewind: int
    align: int | None
    calibration: int
    reconstruct: int
    from_scratch: bool
    # fine-tuning
    epochs: float
    optimizer: Literal["adamw", "sgd"]
    lr: float | None
    weight_decay: float
    batch_size: int
    warmup: float
    distill: float
    temperature: float
    entropy_guidance: float
    precision: Literal["auto", "fp32", "bf16", "fp16"]
    clip: float
    ema: float
    patience: int
    fsdp: bool
    # measuring and exporting
    max_drop: float | None
    minimize: Literal["latency", "macs", "params", "size", "memory"]
    on_noise: Literal["pass", "fail"]
    rounds: int
    export: str | Sequence[str]
    opset: int
    calibrator: Literal["minmax", "percentile", "entropy"]
    int8_error: float
    qat: float
    # the run
    device: str
    memory: str | None
    seed: int


class Common(StepSettings, total=False):
    """Settings of what looks at a model; `data` may be in memory."""

    data: DataLike


class Unplanned(Common, total=False):
    """Every setting but `plan`."""

    target: str | None
    depth: float | None
    runtime: Literal["auto", "ort", "ort-cuda", "torch", "openvino", "openvino-int8"]
    batch: int
    threads: int
    on: str | None
    on_python: str


class Settings(Unplanned, total=False):
    """Every setting of a run as a keyword."""

    plan: str | None


_ALSO = {
    "data": "or what is in memory: a DataLoader, a Dataset, a pair (x, y), a dict of train and test, a function giving batches",
    "inputs": "or example inputs of the model, batch first",
}


def explained(*groups: type) -> str:
    """Every setting of the groups with its type, its default and what it means, as a section of a docstring."""
    lines = ["Settings:"]
    kinds = {name: kind for made in groups for name, kind in made.__annotations__.items()}
    for name, field in Recipe.model_fields.items():
        if name not in kinds:
            continue  # an argument of its own, such as the model
        kind, default = kinds[name], field.get_default(call_default_factory=True)
        meaning = "; ".join(filter(None, (field.description, _ALSO.get(name))))
        lines.append(f"    {name}: {getattr(kind, '__forward_arg__', kind)} = {default!r}")
        lines.append(fill(meaning, _WIDTH, initial_indent=_INDENT, subsequent_indent=_INDENT, break_on_hyphens=False))
    return "\n".join(lines)


def with_settings(function: F) -> F:
    """The function, whose `help` shows the settings as well."""
    return _telling(function, StepSettings, Common, Unplanned, Settings)


def with_step_settings(function: F) -> F:
    """The same where target, plan and what is timed are no settings: the functions of `compress.commands.steps`."""
    return _telling(function, StepSettings)


def _telling(function: F, *groups: type) -> F:
    function.__doc__ = f"{cleandoc(function.__doc__ or '')}\n\n{explained(*groups)}\n"
    return function
