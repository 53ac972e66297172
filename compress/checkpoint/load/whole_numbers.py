"""Models that look their inputs up in tables take whole numbers: tokens, classes, time steps.

Data flows as float32 everywhere else. So such a model gets examples that are whole numbers as float32, and where its own forward
does not make integers of them, its graph begins with that.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.graph.trace.lines import silent

_TRIED = 3  # inputs; of more than that, two to the power of as many combinations would be run


def whole_inputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[bool, ...]] | None:
    """Inputs with which a model runs that does not run on real numbers, and which of them it wants as integers.

    Args:
        module: in eval mode.
        inputs: normally distributed, a batch of 1.

    Returns:
        Of the shapes of the inputs, whole numbers as float32 where they are wanted; None where no such inputs help.
    """
    sizes = sorted({m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding)}, reverse=True)
    if not sizes or len(inputs) > _TRIED or _runs(module, inputs):
        return None
    generator = torch.Generator().manual_seed(0)
    # The largest table is the one of the words; where it looks up more than one, the smallest may be what bounds.
    for size in sizes:
        whole = [torch.randint(0, size, x.shape, generator=generator).float() for x in inputs]
        for chosen in sorted(itertools.product((False, True), repeat=len(inputs)), key=sum)[1:]:
            mixed = tuple(w if take else x for x, w, take in zip(inputs, whole, chosen, strict=True))
            if _runs(module, mixed):
                return mixed, (False,) * len(inputs)
            if _runs(module, as_integers(mixed, chosen)):
                return mixed, chosen
    return None


def as_integers(inputs: Sequence[Tensor], which: Sequence[bool]) -> tuple[Tensor, ...]:
    """The inputs, some of them as int64."""
    return tuple(x.long() if take else x for x, take in zip(inputs, which, strict=True))


def begin_with_integers(module: GraphModule, which: Sequence[bool]) -> GraphModule:
    """Let a traced model make integers of some of its inputs first; changes it."""
    inputs = [n for n in module.graph.nodes if n.op == "placeholder"]
    for node in (n for n, take in zip(inputs, which, strict=True) if take):
        with module.graph.inserting_after(inputs[-1]):
            made = module.graph.call_method("long", (node,))
        made.meta = dict(node.meta)
        node.replace_all_uses_with(made, delete_user_cb=lambda user, made=made: user is not made)
    module.recompile()
    return module


def _runs(module: nn.Module, inputs: Sequence[Tensor]) -> bool:
    try:
        with torch.no_grad(), silent():
            module(*inputs)
    except Exception:  # whatever a user's forward raises
        return False
    return True
