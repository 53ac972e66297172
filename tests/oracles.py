"""The oracles that every model must pass, whatever is removed from it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from compress.edits import Keep
from compress.graph.channels.solve import Channels, Group
from compress.graph.surgery.remove import mask


def random_edits(groups: Sequence[Group], seed: int, share: float = 0.34) -> list[Keep]:
    """A random third (at least one, never all) of the channels of every group goes."""
    random = torch.Generator().manual_seed(seed)
    edits: list[Keep] = []
    for group in groups:
        n = group.channels
        gone = min(n - 1, max(1, round(share * n)))
        edits.append(Keep(group.name, n, tuple(sorted(torch.randperm(n, generator=random)[gone:].tolist()))))
    return edits


def outputs(module: torch.nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """All tensors of a model's output, in order; not by the fast path of torch's attention, which rounds in its own way."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            return flat(module(*(x.clone() for x in inputs)))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def flat(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for part in value for t in flat(part)] if isinstance(value, list | tuple) else []


def distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """Largest difference by largest value, over all outputs; infinite where shapes differ or a value is not finite."""
    if len(a) != len(b) or any(x.shape != y.shape for x, y in zip(a, b, strict=False)):
        return float("inf")
    worst = 0.0
    for x, y in zip(a, b, strict=True):
        ratio = float((x - y).abs().max() / y.abs().max().clamp(min=1e-12))
        worst = max(worst, ratio if ratio == ratio else float("inf"))
    return worst


def scrambled(module: GraphModule, channels: Channels, edit: Keep, seed: int, masked: bool = True) -> GraphModule:
    """The model with everything that makes the removed channels replaced by noise, and (masked) nobody reading them.

    If the solver is right about who makes and who reads a class of channels, the output cannot move.
    """
    module = mask(module, channels, [edit]) if masked else mask(module, channels, [])
    random = torch.Generator().manual_seed(seed)
    gone = torch.ones(edit.channels, dtype=torch.bool)
    gone[list(edit.keep)] = False
    for member in channels.group(edit.layer).members:
        if member.role == "in":
            continue
        owner, _, name = member.tensor.rpartition(".")
        tensor = getattr(module.get_submodule(owner), name).data
        at = ((member.index >= 0) & gone[member.index.clamp(min=0)]).nonzero()[:, 0]
        noise = torch.randn(tensor.index_select(member.dim, at).shape, generator=random)
        tensor.index_copy_(member.dim, at, noise.abs() + 0.1 if name == "running_var" else noise)
    return module
