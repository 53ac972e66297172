"""What no figure could be believed of: a model whose output is random, or depends on what else is in the batch.

Both are told by running the model: once while every operation that draws random numbers is watched, and once on a batch of two.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compress.errors import UnsupportedModel
from compress.graph.trace.lines import silent, their_file

_RUNS = 8  # of a model that draws: whether its output depends on that shows in one of them, or hardly ever
_APART = 1e-3  # of the largest output: rounding differs between batch sizes by far less, normalizing by the batch by far more
_SAME = 1e-6  # of the largest output, where nothing differs but what was drawn
_NORMS = (
    "give its batch norms running statistics (track_running_stats=True, trained or estimated on data), or take norms of a sample "
    "(GroupNorm, LayerNorm)"
)
_FORWARD = "let its forward take sums, norms and conditions of every sample alone, not of all its input"
_DROPOUTS = ("bernoulli", "bernoulli_", "native_dropout")


def refuse_unsteady(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Refuse a model whose answer to one sample is not one answer. A model that does not run is for others to refuse.

    Args:
        module: in eval mode.
        inputs: example inputs, a batch of 1.

    Raises:
        UnsupportedModel: names the operation that draws, or the layer that mixes the samples of a batch.
    """
    norms = (name for name, m in module.named_modules() if isinstance(m, _BatchNorm) and (m.training or m.running_mean is None))
    if (norm := next(norms, None)) is not None:
        raise _mixes(f"{norm} normalizes by the batch also in eval mode, for it has no running statistics")
    with torch.random.fork_rng(devices=[]), torch.no_grad(), silent():
        try:
            with _Drawn() as drawn:
                alone = _first(module(*inputs))
        except Exception:  # whatever it is, tracing says it with the shapes
            return
        if alone is None or alone.ndim == 0:
            return
        if drawn.where and any(_apart(_first(module(*inputs)), alone) > _SAME for _ in range(_RUNS)):
            raise UnsupportedModel(
                f"The output of the model is random: {drawn.where} draws anew for every call, also in eval mode. Needed is one "
                "answer to one input: let it draw in training only (training=self.training), or leave it out."
            )
        pair = tuple(torch.cat([x, _another(x)]) for x in inputs)
        try:
            both = _first(module(*pair))
        except Exception:  # a model of fixed batch size says so elsewhere
            return
        if both is not None and both.shape == (2 * len(alone), *alone.shape[1:]) and _apart(both[: len(alone)], alone) > _APART:
            raise _mixes(*_mixer(module, inputs, pair))


def _another(x: Tensor) -> Tensor:
    """A sample unlike the example, so that a norm over the batch moves a lot; whole numbers stay those of the example."""
    return 3 * torch.randn_like(x) + 1 if (x != x.round()).any() else x.roll(1, -1)


def _mixes(what: str, remedy: str = _NORMS) -> UnsupportedModel:
    return UnsupportedModel(
        f"What the model says of a sample depends on the others in its batch: {what}. Needed is a model that answers one sample "
        f"alike in any batch: {remedy}."
    )


def _first(output: Any) -> Tensor | None:
    return next((t for t in tree_leaves(output) if isinstance(t, Tensor)), None)


def _apart(one: Tensor | None, other: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    if one is None or one.shape != other.shape:
        return float("inf")
    if not len(one) or not one.numel():
        return 0.0
    one, other = one.double(), other.double()
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-12))


def _mixer(module: nn.Module, inputs: tuple[Tensor, ...], pair: tuple[Tensor, ...]) -> tuple[str, str]:
    """What lets samples change each other's results, and the remedy.

    The first module, as they end, whose result for the first sample is another one in the batch; where what it was given is
    another one already, the code in front of it.
    """
    with _results(module) as alone:
        module(*inputs)
    with _results(module) as both:
        module(*pair)
    for (name, one), (other, two) in zip(alone, both, strict=False):
        if name != other:
            break
        if not name:
            break
        said = f"{name} ({type(module.get_submodule(name)).__name__})"
        if one[0] is not None and two[0] is not None and _moved(one[0], two[0]):
            return f"the code in front of {said} lets the samples of a batch change each other's results", _FORWARD
        if _moved(one[1], two[1]):
            return f"{said} lets the samples of a batch change each other's results", _NORMS
    return "its forward lets the samples of a batch change each other's results", _FORWARD


def _moved(one: Tensor, two: Tensor) -> bool:
    """The first sample of a batch is another one than alone."""
    axes = [i for i, (n, m) in enumerate(zip(one.shape, two.shape, strict=False)) if n != m]
    # A result without an axis that grows with the batch was taken over all of it.
    mine = two.narrow(axes[0], 0, one.shape[axes[0]]) if len(axes) == 1 and two.ndim == one.ndim else two
    return _apart(mine, one) > _APART


@contextmanager
def _results(module: nn.Module) -> Iterator[list[tuple[str, tuple[Tensor | None, Tensor]]]]:
    """Of every module what it was given first and what it gave."""
    found: list[tuple[str, tuple[Tensor | None, Tensor]]] = []

    def note(name: str) -> Any:
        def before(_m: nn.Module, args: Any) -> None:
            given.append(None if (tensor := _first(args)) is None else tensor.clone())  # the layer may work in place

        def after(_m: nn.Module, _args: Any, output: Any) -> None:
            taken = given.pop()
            if (tensor := _first(output)) is not None:
                found.append((name, (taken, tensor.clone())))

        return before, after

    given: list[Tensor | None] = []
    noted = [(m, *note(name)) for name, m in module.named_modules()]
    hooks = [hook for m, before, after in noted for hook in (m.register_forward_pre_hook(before), m.register_forward_hook(after))]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


class _Drawn(TorchDispatchMode):
    """Remembers the first operation that drew random numbers, and the line of the user's code that called it."""

    where = ""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.where and torch.Tag.nondeterministic_seeded in func.tags and not _without_dropout(func, args, kwargs or {}):
            name = func._overloadpacket.__name__
            self.where = f"{'dropout' if name in _DROPOUTS else name} in {_line()}"
        return func(*args, **(kwargs or {}))


def _without_dropout(func: Any, args: Any, kwargs: Any) -> bool:
    """Attention may drop out, and hence has the tag of what draws; in eval mode its share is 0."""
    named = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    return any(a.name == "dropout_p" for a in func._schema.arguments) and not named.get("dropout_p")


def _line() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is refuse_unsteady.__code__:
            break  # what called us is not the model
        if (name := their_file(frame.f_code.co_filename)) and frame.f_code.co_filename != __file__:
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "the model"
