"""Classes of atoms become groups of channels.

Hundreds of axes carry the same few label vectors (a convolution's outputs, its bias, four tensors of the norm behind it, the next
layer's inputs), so every step here works once per distinct vector. NumPy, because the vectors are short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compress.graph.channels.atom_state import Sized, State
from compress.graph.channels.atoms import along, slim
from compress.graph.channels.groups import Channels, Group, Member, Product
from compress.graph.channels.propagation import differs

Labels = npt.NDArray[np.int64]
ALONE = "it is the only channel of its kind, and one must stay"


@dataclass(frozen=True)
class _Axes:
    """Every axis, and the distinct label vectors: axis i has the labels `vectors[which[i]]`."""

    keys: list[tuple[str, int]]
    roles: list[str]
    which: list[int]
    vectors: list[Labels]


def read(s: State, classes: Tensor) -> Channels:
    """The solved model, from the class of every atom."""
    axes = _distinct(s, classes.numpy())
    numbers, reasons = s.atoms.reasons(classes)
    why = numbers.numpy()
    # First axis of every distinct vector, in graph order, so that a reason names the layer nearest to the input.
    for i, vector in sorted({n: (i, axes.vectors[n]) for i, n in reversed(list(enumerate(axes.which)))}.values(), key=_first):
        # all of one class and not frozen yet: removing it would leave nothing
        if why[vector[0]] < 0 and bool((vector == vector[0]).all()):
            tensor = axes.keys[i][0]
            layer = tensor.rpartition(".")[0] or tensor
            many = len(vector) > 1
            why[vector[0]] = len(reasons)
            reasons.append(f"all {len(vector)} channels of {layer} are coupled" if many else f"{layer} has a single channel")
    kinds = _kinds(why, [*axes.vectors, *_pieces(s, classes)])
    groups = _groups(axes, kinds)
    explained = tuple(_explained(g, int(why[g.labels[0]]), reasons) for g in groups)
    tensors = [torch.from_numpy(v) for v in axes.vectors]
    labels = {k: (r, tensors[n]) for k, r, n in zip(axes.keys, axes.roles, axes.which, strict=True)}
    sized = {name: _labeled(entry, classes) for name, entry in s.sized.items()}
    counted = _counted(s, classes)
    zeroed = (
        frozenset(torch.unique(torch.cat([classes[slim(a)].flatten() for a, _, _ in s.zeroed])).tolist())
        if s.zeroed
        else frozenset[int]()
    )
    return Channels(explained, labels, sized, s.names, frozenset(s.thin), _products(s, classes), counted, zeroed, len(classes))


def _counted(s: State, classes: Tensor) -> frozenset[str]:
    """Names of the nodes that compute with how many channels there are."""
    known: dict[tuple[int | str, int], bool] = {}  # a size is read once, and computed with again and again

    def changes(of: Tensor | str, dim: int) -> bool:
        key = (of if isinstance(of, str) else id(of), dim)
        if key not in known:
            atoms, axis = s.counted(of, dim)
            known[key] = differs(classes[slim(atoms)], axis)
        return known[key]

    return frozenset(node.name for node, counts in s.counts.items() if any(changes(of, dim) for of, dim in counts))


def _products(s: State, classes: Tensor) -> dict[str, tuple[Product, ...]]:
    return {name: tuple(_product(one, classes) for one in products) for name, products in s.products.items()}


def _product(operands: Sequence[tuple[str, Tensor]], classes: Tensor) -> Product:
    """Each letter is an axis of the product, as long as in any operand, with the channels of the one that has some there."""
    sizes: dict[str, int] = {}
    axes: dict[str, Tensor] = {}
    for term, t in operands:
        labels = classes[slim(t)]
        for d, letter in enumerate(term):
            sizes[letter] = max(sizes.get(letter, 1), t.shape[d])
            if letter not in axes and differs(labels, d):
                axes[letter] = along(labels, d)
    return Product(prod(sizes.values()), tuple(axes.values()))


# Over slim and expanded again, so that a large activation costs one element per channel.
def _labels(t: Tensor, classes: Tensor) -> Tensor:
    return classes[slim(t)].expand(t.shape)


def _labeled(entry: Sized, classes: Tensor) -> Sized:
    also = tuple(_labeled(one, classes) for one in entry.also)
    return replace(entry, into=_labels(entry.into, classes), out=_labels(entry.out, classes), also=also)


def _first(item: tuple[int, Labels]) -> int:
    return item[0]


def _distinct(s: State, classes: Labels) -> _Axes:
    axes = _Axes([], [], [], [])
    known: dict[bytes, int] = {}
    met: dict[int, int] = {}  # by the tensor of atoms, which the axes of a layer share
    for key, (role, atoms) in s.axes.items():
        number = met.get(id(atoms), -1)
        if number < 0:
            # Bytes as the key: equal vectors are equal bytes, which is faster than comparing them pair by pair.
            vector: Labels = classes[atoms.numpy()]
            number = met[id(atoms)] = known.setdefault(vector.tobytes(), len(axes.vectors))
            if number == len(axes.vectors):
                axes.vectors.append(vector)
        axes.keys.append(key)
        axes.roles.append(role)
        axes.which.append(number)
    return axes


def _pieces(s: State, classes: Tensor) -> list[Labels]:
    """The parts of every cut along channels: classes of different parts never share a group, so no part becomes empty."""
    found: list[Labels] = []
    for t in s.pieces:
        labels = classes[slim(t)]
        found += [along(labels, d).numpy() for d in range(t.ndim) if t.numel() and differs(labels, d)]
    return found


def _kinds(why: Labels, vectors: Sequence[Labels]) -> Labels:
    """A number per class, equal where two classes touch the same axes equally often and are frozen for the same reason.

    Refinement, vector by vector: (number before, count in this vector) becomes the new number.
    """
    kinds: Labels = why - why.min()  # from 0, for bincount
    highest = int(kinds.max()) + 1
    for vector in vectors:
        if bool((vector[1:] > vector[:-1]).all()):  # as most are: each class once, in order
            unique, packed = vector, kinds[vector]
        else:
            unique, counts = np.unique(vector, return_counts=True)
            # (kind, count) packed into one number: the factor is above every count.
            packed = kinds[unique] * (int(counts.max()) + 1) + counts
        alike = bool((packed == packed[0]).all())
        kinds[unique] = highest if alike else highest + np.unique(packed, return_inverse=True)[1]
        highest += len(unique)
    # renumbered without gaps, since refinement leaves numbers that no class has
    return (np.cumsum(np.bincount(kinds) > 0) - 1)[kinds]


def _groups(axes: _Axes, kinds: Labels) -> list[Group]:
    """In graph order. Channels are numbered in the order in which the first producer makes them."""
    kinds_of: list[Labels] = [kinds[v] for v in axes.vectors]
    inside = [np.flatnonzero(np.bincount(k)).tolist() for k in kinds_of]
    touched: dict[int, list[int]] = {}
    for i, number in enumerate(axes.which):
        for kind in inside[number]:
            touched.setdefault(kind, []).append(i)
    position = np.full(len(kinds), -1)
    indices: dict[tuple[int, int], Tensor] = {}
    names: dict[str, int] = {}
    found: list[Group] = []
    for kind, places in sorted(touched.items(), key=lambda item: item[1]):
        # By its producer, for that is where a user knows the channels; an input's group has none.
        first = next((i for i in places if axes.roles[i] == "out"), places[0])
        vector = axes.vectors[axes.which[first]]
        own = vector[kinds_of[axes.which[first]] == kind]
        # np.unique sorts; its first indices sorted give the order of appearance back.
        ordered: Labels = own[np.sort(np.unique(own, return_index=True)[1])]
        # One array for all groups, never cleared: what other groups have left in it becomes -1 below.
        position[ordered] = np.arange(len(ordered))
        for n in {axes.which[i] for i in places}:
            at = position[axes.vectors[n]]
            indices[n, kind] = torch.from_numpy(at if len(inside[n]) == 1 else np.where(kinds_of[n] == kind, at, -1))
        members = tuple(Member(*axes.keys[i], axes.roles[i], indices[axes.which[i], kind]) for i in places)
        name = _name(axes.keys[first][0], axes.roles[first], names)
        found.append(Group(name, len(ordered), members, None, tuple(ordered.tolist())))
    return found


def _name(tensor: str, role: str, names: dict[str, int]) -> str:
    layer = tensor.rpartition(".")[0] or tensor
    name = layer if role == "out" else f"input of {layer}"
    # Several groups may share a producer (the parts of a chunk); the first keeps the plain name.
    names[name] = names.get(name, 0) + 1
    return name if names[name] == 1 else f"{name}#{names[name]}"


def _explained(group: Group, number: int, reasons: Sequence[str]) -> Group:
    """The group with the reason why it is frozen, if it is."""
    if number >= 0:
        return replace(group, frozen=reasons[number])
    return replace(group, frozen=ALONE) if group.channels == 1 else group
