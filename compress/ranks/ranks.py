"""A process among those that share the work of a run, and its share of the batches.

Batches are dealt out in lanes: runs of neighboring batches, as many as `LANES`, whatever the number of processes. Sums in float32
are made within a lane and added in float64 beyond it, so that what is found does not depend on who looked at which lane, but for
the last digits of float64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

LANES = 24
"""Processes beyond so many get no batch of a pass."""

T = TypeVar("T")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """Which batches of a pass are one's own.

    Attributes:
        numbers: of the batches, counted through all of them.
        ends: numbers of the batches that are the last ones of a lane.
    """

    numbers: range
    ends: frozenset[int]


@dataclass(frozen=True)
class Ranks:
    """One process of several that call the same functions in the same order.

    Attributes:
        number: of this process, from 0.
        count: of all.
        local: of those on this machine.
    """

    number: int = 0
    count: int = 1
    local: int = 1

    def share(self, batches: int) -> Share:
        """This process's share of so many batches."""
        lanes = min(batches, LANES)
        begins = [lane * batches // max(lanes, 1) for lane in range(lanes + 1)]
        first, last = (begins[rank * lanes // self.count] for rank in (self.number, self.number + 1))
        return Share(range(first, last), frozenset(end - 1 for end in begins[1:]))

    def part(self, samples: Tensor) -> Tensor:
        """This process's samples of a batch that all take a step on together."""
        return samples[self.number :: self.count]

    def summed(self, value: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each of them; the tensor itself may be overwritten."""
        if self.count > 1:
            value = value.contiguous()
            dist.all_reduce(value)
        return value

    def gathered(self, value: T) -> list[T]:
        """What every process gives, in their order."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return cast("list[T]", found)

    def each(
        self,
        items: Sequence[Item],
        function: Callable[[Item], T],
        work: Callable[[Item], float],
        progress: Callable[[float], None] = lambda share: None,
    ) -> list[T]:
        """What a function gives for every item; each process takes some of them.

        Args:
            items: independent of each other.
            function: called for every item in one of the processes.
            work: how long an item takes beside another. The largest goes to whoever has least so far.
            progress: told the share of one's own that is done.
        """
        mine = range(len(items)) if self.count == 1 else self._dealt([work(item) for item in items])
        found: dict[int, T] = {}
        for done, number in enumerate(mine, 1):
            found[number] = function(items[number])
            progress(done / len(mine))
        together = {number: value for part in self.gathered(found) for number, value in part.items()}
        return [together[number] for number in range(len(items))]

    def _dealt(self, work: Sequence[float]) -> list[int]:
        loads, mine = [0.0] * self.count, list[int]()
        for number in sorted(range(len(work)), key=lambda n: -work[n]):
            taker = loads.index(min(loads))
            loads[taker] += work[number]
            if taker == self.number:
                mine.append(number)
        return mine

    def mean(self, values: Sequence[Tensor]) -> None:
        """Tensors that should be the same everywhere are replaced by their mean over all processes."""
        if self.count == 1 or not values:
            return
        flat = self.summed(torch.cat([value.detach().reshape(-1) for value in values])) / self.count
        with torch.no_grad():
            for value, mean in zip(values, flat.split([value.numel() for value in values]), strict=True):
                value.copy_(mean.view_as(value))


ALONE = Ranks()
