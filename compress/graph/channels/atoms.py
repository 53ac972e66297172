"""Channel atoms: the integers that are pushed through a graph in place of activations.

An atom is one channel of one producer. Operations that tie channels to each other (a residual sum, a norm) unite their atoms; the
classes of united atoms live and die together. Uniting only records an edge: the classes are found once, at the end.

Atom tensors are usually expanded views (stride 0 along batch and space), so they cost no memory; the functions here look
at one element per expanded axis.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_FEW = 4096  # pairs that are not worth sorting


class Atoms:
    """Hands out atoms, collects edges between them and the reasons why some may never be removed."""

    def __init__(self) -> None:
        self.count = 0
        self._edges: list[npt.NDArray[np.int64]] = []
        self._frozen: list[tuple[Tensor, str]] = []

    def new(self, number: int) -> Tensor:
        """`number` fresh atoms, shape (number,)."""
        self.count += number
        return torch.arange(self.count - number, self.count)

    @property
    def edges(self) -> int:
        """How often unequal atoms were united."""
        return len(self._edges)

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Element by element; shapes are broadcast against each other."""
        if a.shape != b.shape:
            a, b = torch.broadcast_tensors(a, b)
        a, b = _slim(a, b)  # after the broadcast: an axis expanded in both has nothing new to say
        ours, theirs = a.numpy(), b.numpy()  # short vectors, for which a call of NumPy costs a fifth of one of torch
        differ = ours != theirs
        if differ.any():
            # 2 ** 32 atoms are far more than any model has channels.
            # Pairs as single numbers: sorting those is far faster than sorting columns.
            pairs = (ours[differ] << 32) | theirs[differ]
            self._edges.append(np.unique(pairs) if len(pairs) > _FEW else pairs)

    def unite_along(self, t: Tensor, dims: Iterable[int]) -> Tensor:
        """Unite all atoms along `dims`; gives `t` with its first element repeated along them."""
        rep = t
        # The first along each axis stands for the others; n - 1 edges are enough for one class.
        for d in dims:
            rep = rep.narrow(d, 0, 1) if rep.shape[d] > 1 else rep
        rep = rep.expand(t.shape)
        self.unite(rep, t)
        return rep

    def per_channel(self, t: Tensor, dim: int) -> Tensor:
        """Unite along every axis but `dim`: what a layer that reads whole channels asks for. Shape (t.shape[dim],)."""
        dim %= t.ndim
        # nothing to unite, as for most activations behind a convolution
        if all(size == 1 or step == 0 for d, (size, step) in enumerate(zip(t.shape, t.stride(), strict=True)) if d != dim):
            return along(t, dim)
        rep = self.unite_along(t, [d for d in range(t.ndim) if d != dim])
        return along(rep, dim)

    def freeze(self, t: Tensor, reason: str) -> None:
        """These atoms, and with them their classes, stay."""
        self._frozen.append((torch.unique(slim(t)), reason))

    def classes(self) -> Tensor:
        """Class of every atom, shape (count,): connected components, each labeled by its lowest atom.

        Every root that edges connect to lower ones is hung below the lowest of them, then all atoms look up their roots.
        """
        parent = np.arange(self.count)
        pairs = np.concatenate(self._edges) if self._edges else np.zeros(0, np.int64)
        # Undoes the packing of unite.
        one, other = pairs >> 32, pairs & 0xFFFFFFFF
        while True:
            one, other = parent[one], parent[other]
            apart = one != other
            if not apart.any():
                return torch.from_numpy(parent)
            one, other = one[apart], other[apart]
            # Towards the lower label, so that no cycle can arise and the result does not depend on the order of edges.
            np.minimum.at(parent, np.maximum(one, other), np.minimum(one, other))
            while not np.array_equal(parent, further := parent[parent]):  # path halving until every atom points at its root
                parent = further

    def reasons(self, classes: Tensor) -> tuple[Tensor, list[str]]:
        """For every class the number of the first reason to freeze it (-1: none), and the reasons."""
        numbers = torch.full_like(classes, -1)
        # Backwards, so that the first reason, which is nearest to the input, is the one that stays.
        for i in reversed(range(len(self._frozen))):
            numbers[classes[self._frozen[i][0]]] = i
        return numbers, [reason for _, reason in self._frozen]


def along(t: Tensor, dim: int) -> Tensor:
    """The first entry at each position of an axis, shape (t.shape[dim],)."""
    # as_strided needs no contiguity, unlike view; offset and stride are those of t.
    return t.as_strided((t.shape[dim],), (t.stride(dim),)) if t.numel() else t.new_zeros(0)


def varies(t: Tensor, dim: int) -> bool:
    """Whether the atoms differ along an axis."""
    # Stride 0 is an expanded axis: equal without looking.
    if t.numel() == 0 or t.shape[dim] == 1 or t.stride(dim) == 0:
        return False
    values = slim(t).numpy()
    return bool((values != values.take([0], dim)).any())


def varying(t: Tensor) -> list[int]:
    """The axes along which the atoms differ."""
    return [d for d in range(t.ndim) if varies(t, d)]


def slim(t: Tensor) -> Tensor:
    """The same atoms with one element along every expanded axis."""
    sizes, steps = t.shape, t.stride()
    if 0 not in steps:
        return t
    return t.as_strided([n if step or n == 0 else 1 for n, step in zip(sizes, steps, strict=True)], steps)


def _slim(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same tensors with one element along every axis that is expanded in all of them."""
    steps = [t.stride() for t in tensors]
    shape = tensors[0].shape
    slim_shape = [n if n <= 1 or any(step[d] for step in steps) else 1 for d, n in enumerate(shape)]
    if slim_shape == list(shape):
        return tensors
    return tuple(t.as_strided(slim_shape, step) for t, step in zip(tensors, steps, strict=True))
