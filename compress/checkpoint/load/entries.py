"""Which weights of a checkpoint: it may hold a module's twice (raw and averaged), or those of a loss and of metrics beside them.

Averaged weights are taken where they are whole, as timm does; a note says so and how to take the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from compress.checkpoint.load.pickled_layers import Record, own
from compress.errors import BadInput

NESTS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
_WRAPPERS = ("module.", "_orig_mod.")
_AVERAGED = re.compile(r"(^|[_.])(ema|swa)([_.]|$)|averaged")
_COUNT = "num_batches_tracked"  # averages leave it out, and torch sets it
SHOWN = 5

Weights = dict[str, Tensor]


def find(saved: Any, where: str, entry: str | None = None) -> tuple[nn.Module | Record | Weights, list[str], str | None]:
    """The module or the tensors in a saved object, however nested, with notes; `entry` again where nothing is called so.

    Args:
        saved: what the file holds.
        where: how messages call the file.
        entry: what the user has asked for.

    Raises:
        BadInput: neither is in it.
    """
    notes: list[str] = []
    tensors: Weights = {}
    for _ in range(4):
        if isinstance(saved, nn.Module | Record):
            return saved, notes, entry
        if not isinstance(saved, Mapping):
            raise BadInput(f"{where} holds a {torch.typename(saved)}; needed is a module or a state_dict (names and tensors).")
        tensors = {str(key): own(value, str(key), where) for key, value in saved.items() if isinstance(value, Tensor)}
        nest, said = _nest(saved, len(tensors) > len(saved) / 2, entry)
        if nest is None:
            break
        entry = None if nest == entry else entry
        notes.append(said)
        saved = saved[nest]
    if not tensors:
        keys = ", ".join(repr(key) for key in list(saved)[:SHOWN]) or "nothing"
        raise BadInput(f"{where} holds no weights (its entries: {keys}); needed is a state_dict, alone or under 'state_dict'.")
    return _unwrapped(tensors, notes), notes, entry


def _nest(saved: Mapping[Any, Any], flat: bool, entry: str | None) -> tuple[str | None, str]:
    """The entry to go on with, and a note of it."""
    if entry is not None and _names(saved.get(entry)) is not None:
        return entry, f"The weights were read from the entry '{entry}' of the file, as asked."
    if flat:
        return None, ""
    plain = next((key for key in NESTS if isinstance(saved.get(key), Mapping | nn.Module | Record)), None)
    averages = [key for key in saved if isinstance(key, str) and _is_averaged(key) and _names(saved[key]) is not None]
    if plain is None or not averages:
        nest = plain or next(iter(averages), None)
        return nest, f"The weights were read from the entry '{nest}' of the file."
    averaged = averages[0]
    one, other = _names(saved[averaged]), _names(saved[plain])
    if one == other:
        return averaged, (
            f"The averaged weights were read from the entry '{averaged}' of the file; --weights-entry {plain} takes those that "
            "are not averaged."
        )
    # Averages of parameters alone have no running statistics: they are no model.
    return plain, (
        f"The weights were read from the entry '{plain}' of the file, since the averaged ones in '{averaged}' have other names; "
        f"--weights-entry {averaged} takes those."
    )


def _is_averaged(name: str) -> bool:
    return _AVERAGED.search(name.lower()) is not None


def _names(value: object) -> frozenset[str] | None:
    """Names of the weights in an entry, without what wrappers put before them; None where it holds none."""
    if isinstance(value, Record):
        return frozenset((Record.__name__,))  # another one holds the same, as far as can be told here
    if isinstance(value, nn.Module):
        return _bare(value.state_dict())
    if not isinstance(value, Mapping):
        return None
    if found := [str(key) for key, tensor in value.items() if isinstance(tensor, Tensor)]:
        return _bare(found)
    inner = next((value[key] for key in NESTS if key in value), None)
    return None if inner is value else _names(inner)


def _bare(names: Iterable[str]) -> frozenset[str]:
    kept = [name for name in names if name.rpartition(".")[2] not in (_COUNT, "n_averaged")]
    for wrapper in _WRAPPERS * 2:
        if all(name.startswith(wrapper) for name in kept):
            kept = [name.removeprefix(wrapper) for name in kept]
    return frozenset(kept)


def _unwrapped(tensors: Weights, notes: list[str]) -> Weights:
    """Names without what DataParallel, AveragedModel and torch.compile put before them."""
    counters = [name for name, tensor in tensors.items() if name.rpartition(".")[2] == "n_averaged" and tensor.ndim == 0]
    if counters:
        tensors = {name: tensor for name, tensor in tensors.items() if name not in counters}
        notes.append(f"{counters[0]}, which counts the averaged models, was left out.")
    for prefix in _WRAPPERS * 2:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            notes.append(f"The prefix '{prefix}' was taken off the names of the weights.")
    if any("_orig_mod." in name for name in tensors):
        tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}
        notes.append("'_orig_mod.' (torch.compile) was taken out of the names of the weights.")
    return tensors


def inner(weights: Weights, wanted: Mapping[str, Any], entry: str | None, where: str) -> tuple[Weights, list[str]]:
    """The weights below a part of their names that has all that the architecture wants; as they are where none has.

    Args:
        weights: of a whole checkpoint; those of a loss or of metrics may be among them.
        wanted: the state_dict of the architecture.
        entry: the first part that the user has asked for.
        where: how messages call the file.

    Raises:
        BadInput: several parts have it, or none that was asked for.
    """
    needed = [name for name in wanted if not name.endswith(_COUNT)]
    if not needed or (entry is None and all(name in weights for name in needed)):
        return weights, []
    first = needed[0]
    parts = [name.removesuffix(first) for name in weights if name.endswith(f".{first}")]
    parts = [part for part in parts if all(f"{part}{name}" in weights for name in needed)]
    # Of two that have the names, those of the right sizes are meant; with no such one the number of classes may differ.
    sized = [name for name in needed if not is_lazy(wanted[name])]
    fitting = [part for part in parts if all(weights[f"{part}{name}"].shape == wanted[name].shape for name in sized)]
    parts = [part for part in fitting or parts if entry is None or part.startswith(f"{entry}.")]
    if entry is not None and not parts:
        raise BadInput(
            f"{where} has no weights of the architecture in an entry '{entry}', nor under names that begin with '{entry}.'. "
            "Leave --weights-entry out, or give one that the file has."
        )
    if not parts:
        return weights, []
    raw = [part for part in parts if not _is_averaged(part)]
    chosen = next((part for part in parts if part not in raw), parts[0])
    if len(raw) > 1 or len(parts) - len(raw) > 1:
        told = " and ".join(f"'{part[:-1]}'" for part in parts[:SHOWN])
        raise BadInput(f"{where} holds the weights more than once, under {told}. Say which with --weights-entry {parts[0][:-1]}.")
    notes = [f"The prefix '{chosen}' was taken off the names of the weights."]
    if raw and chosen not in raw:
        notes = [f"The averaged weights were read ('{chosen}'); --weights-entry {raw[0][:-1]} takes those that are not averaged."]
    if out := [name for name in weights if not name.startswith(chosen)]:
        more = f" and {len(out) - SHOWN} more" if len(out) > SHOWN else ""
        notes.append(f"Left out, for the architecture has no such tensors: {', '.join(out[:SHOWN])}{more}.")
    return {name.removeprefix(chosen): tensor for name, tensor in weights.items() if name.startswith(chosen)}, notes
