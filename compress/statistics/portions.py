"""A batch that goes through a model part by part, and is looked at as if it went as a whole.

How many images fit into memory at once must not change what is found: positions are drawn for the whole batch when its first part
comes, and every part is given its own.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.entropy.moments import Positions, sample
from compress.statistics.layers import Layer

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Part:
    """Some images of a batch: from `start` on, so many, of `whole`."""

    start: int
    images: int
    whole: int

    def of(self, inputs: Inputs) -> Inputs:
        """The part of a batch."""
        return inputs if self.images == self.whole else tuple(x[self.start : self.start + self.images] for x in inputs)


def cut(whole: int, most: int) -> list[Part]:
    """The parts of a batch, at most so many images each."""
    return [Part(start, min(most, whole - start), whole) for start in range(0, whole, most)]


class Drawn:
    """Output positions of a batch."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator
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
            self._known[call] = sample(sizes, rows, self.generator)
        at = self._known[call]
        if part.images == part.whole:
            return at
        low = round(each * part.start)
        mine = (at.sample >= low) & (at.sample < low + here)
        return Positions(at.sample[mine] - low, tuple(p[mine] for p in at.place))
