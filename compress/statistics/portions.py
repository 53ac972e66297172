"""A batch that goes through a model part by part, and is looked at as if it went as a whole.

How many images fit into memory at once must not change what is found: positions are drawn for the whole batch when its first part
comes, and every part is given its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.entropy.moments import Positions, sample
from compress.statistics.layers import Layer

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Part:
    """Some images of a batch: from `start` on, so many, of `whole`; `batch` is the number of the batch in its pass."""

    start: int
    images: int
    whole: int
    batch: int = 0

    def of(self, inputs: Inputs) -> Inputs:
        """The part of a batch."""
        return inputs if self.images == self.whole else tuple(x[self.start : self.start + self.images] for x in inputs)


def cut(whole: int, most: int, batch: int = 0) -> list[Part]:
    """The parts of a batch, at most so many images each."""
    return [Part(start, min(most, whole - start), whole, batch) for start in range(0, whole, most)]


def stream(seed: int, *what: Hashable) -> torch.Generator:
    """Random numbers of something's own: the same ones, whoever draws them and whatever was drawn before."""
    digest = hashlib.blake2b(repr((seed, *what)).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


class Drawn:
    """Output positions of a batch."""

    def __init__(self, seed: int):
        self.seed = seed
        self._known: dict[Hashable, Positions] = {}

    def places(self, one: Layer, call: Hashable, y: Tensor, rows: int, part: Part) -> Positions:
        """The positions of a part.

        Args:
            one: the layer.
            call: what tells this call of a layer from every other in a pass.
            y: its output for the part.
            rows: how many positions the whole batch gets.
            part: which one this is; the first of a batch comes first.
        """
        here = len(one.images(y))
        each = here / part.images
        if part.start == 0:
            sizes = (round(each * part.whole), *one.images(y).shape[2:])
            self._known[call] = sample(sizes, rows, stream(self.seed, "places", part.batch, call))
        at = self._known[call]
        if part.images == part.whole:
            return at
        low = round(each * part.start)
        mine = (at.sample >= low) & (at.sample < low + here)
        return Positions(at.sample[mine] - low, tuple(p[mine] for p in at.place))
