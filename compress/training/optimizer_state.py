"""The state of an optimizer, carried over to the model that surgery leaves.

Momentum and Adam's moments hold one number per weight, and so lose the same positions as the weights do: the state is put into
a copy of the model in the place of its weights, and the same surgery cuts it. Where an edit computes new weights (a merge), what
was known of the old ones says nothing of them, and they begin without state.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.optim import Optimizer

from compress.artifact import Artifact, apply, runs
from compress.edits import Edit, Keep, Plan
from compress.errors import BadInput
from compress.graph.surgery import remove

Named = dict[str, Tensor]


def follow(optimizer: Optimizer, before: nn.Module, traced: Artifact, edits: Sequence[Edit], after: nn.Module) -> None:
    """Let an optimizer of `before` go on with `after`; changes the optimizer, whose settings and groups stay.

    Args:
        optimizer: any with one number per weight in its state, or none (SGD, Adam, AdamW, RMSprop, ...).
        before: the model whose parameters it holds.
        traced: the same model traced.
        edits: what leads from it to `after`.
        after: the model to be trained from now on.

    Raises:
        BadInput: the optimizer holds none of the model's parameters, one that the traced model does not have, or state that is
            not one number per weight.
    """
    names = {id(p): name for name, p in before.named_parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"] if id(p) in names]
    if not held:
        raise BadInput(
            "The optimizer holds none of the model's parameters; needed is the one that was made of the parameters of the model "
            "before the edit. Call follow once after each edit, with the optimizer that trained that model."
        )
    there = dict(traced.module.named_parameters())
    _refuse_others([names[id(p)] for p in held], there)
    states = {names[id(p)]: cast("dict[str, Any]", optimizer.state.get(p, {})) for p in held}
    per_weight = _per_weight(states, there)
    cut = {key: carried(traced, edits, values) for key, values in per_weight.items()}
    new = dict(after.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = _followed(group["params"], names, new)
    _add_new(optimizer, new)
    for p in held:
        optimizer.state.pop(p, None)
    for name, state in states.items():
        own = [key for key in state if name in per_weight.get(key, {})]
        # All of a weight's state, or none of it: a step count without its moments would be wrong.
        if name in new and state and all(name in cut[key] for key in own):
            optimizer.state[new[name]] = {**state, **{key: cut[key][name] for key in own}}


def carried(artifact: Artifact, edits: Sequence[Edit], values: Mapping[str, Tensor]) -> Named:
    """Numbers that belong to weights, one each, after some edits; those of weights that were computed anew are left out.

    Args:
        artifact: the traced model before the edits.
        edits: as in its plan.
        values: by the parameters' names, of their shapes.
    """
    values = dict(values)
    for run in runs(edits):
        after = apply(Plan(run), artifact)
        old, new = (dict(one.module.named_parameters()) for one in (artifact, after))
        if isinstance(run[0], Keep):
            small = remove.keep(_holding(artifact.module, values), artifact.channels, cast("Sequence[Keep]", run))
            cut = dict(small.named_parameters())
            values = {name: cut[name].detach() for name in values if name in new and cut[name].shape == new[name].shape}
        else:
            values = {name: value for name, value in values.items() if name in new and torch.equal(new[name], old[name])}
        artifact = after
    return values


def _holding(module: GraphModule, values: Mapping[str, Tensor]) -> GraphModule:
    """A copy of a model with other numbers in the place of its weights, on the device and of the type of these."""
    module = copy.deepcopy(module)
    for name, value in values.items():
        path, _, last = name.rpartition(".")
        setattr(module.get_submodule(path), last, nn.Parameter(value.detach().clone(), requires_grad=False))
    return module


def _refuse_others(names: Sequence[str], there: Mapping[str, Tensor]) -> None:
    if lacking := [name for name in names if name not in there]:
        raise BadInput(
            f"The optimizer holds {lacking[0]}, which tracing has written as other weights: its state cannot be followed. "
            "Make a new optimizer for the smaller model."
        )


def _per_weight(states: Mapping[str, Mapping[str, Any]], there: Mapping[str, Tensor]) -> dict[str, Named]:
    """Key of the state -> parameter -> numbers of its shape."""
    found: dict[str, Named] = {}
    for name, state in states.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape == there[name].shape and value.is_floating_point():
                found.setdefault(key, {})[name] = value
            elif isinstance(value, list | tuple | dict) or (isinstance(value, Tensor) and value.numel() > 1):
                raise BadInput(
                    f"The optimizer keeps '{key}' of {name}, which is not one number per weight: it cannot be followed. "
                    "Make a new optimizer for the smaller model."
                )
    return found


def _followed(params: Sequence[nn.Parameter], names: Mapping[int, str], new: Mapping[str, nn.Parameter]) -> list[nn.Parameter]:
    """The parameters of a group: those of the model by their names in the new one, others as they are."""
    kept = (p if id(p) not in names else new.get(names[id(p)]) for p in params)
    return [p for p in kept if p is not None]


def _add_new(optimizer: Optimizer, new: Mapping[str, nn.Parameter]) -> None:
    """Parameters that an edit has made go where the others of their layer are, else into the first group."""
    groups = optimizer.param_groups
    place = {id(p): number for number, group in enumerate(groups) for p in group["params"]}
    for name, p in new.items():
        if id(p) not in place and p.requires_grad:
            beside = [place[id(q)] for other, q in new.items() if id(q) in place and _layer(other) == _layer(name)]
            groups[beside[0] if beside else 0]["params"].append(p)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]
