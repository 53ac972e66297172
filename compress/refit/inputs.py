"""The images that two models are compared on, part by part: as many at a time as go through both of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from compress.data.room import Held, Room
from compress.ranks import ALONE, Ranks, Share
from compress.statistics.portions import Part, cut


class Images(Sequence[tuple[Tensor, ...]]):
    """Model inputs, on the device when they are asked for.

    Attributes:
        parts: which images of which batch each part has; what is drawn is drawn for whole batches.
        room: for the images, and for all that is held about them.
        ranks: the processes that share the images; here are those of this one.
        samples: number of images, those of all processes together.
    """

    def __init__(
        self,
        batches: Iterable[tuple[Tensor, ...]],
        room: Room | None = None,
        most: int = 1 << 30,
        ranks: Ranks = ALONE,
        share: Share | None = None,
    ):
        self.room, self.parts, self.ranks, self._share = room or Room(), list[Part](), ranks, share
        self._inputs = Held(self.room)
        for number, batch in enumerate(batches, share.numbers.start if share else 0):
            for part in cut(len(batch[0]), most, number):
                self.parts.append(part)
                # Of their own: a part of a batch would keep all of it in memory.
                mine = part.of(batch)
                self._inputs.append(mine if part.images == part.whole else tuple(x.clone() for x in mine))
        self.samples = sum(ranks.gathered(sum(part.images for part in self.parts)))

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self._inputs[number]

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return (self[number] for number in range(len(self)))

    def ends_lane(self, number: int) -> bool:
        """Whether the sums of these images are added to those of others in float64 (`ranks`)."""
        part = self.parts[number]
        return part.start + part.images == part.whole and self._share is not None and part.batch in self._share.ends

    def batches(self) -> Iterator[list[int]]:
        """Numbers of the parts of each batch."""
        batch: list[int] = []
        for number, part in enumerate(self.parts):
            if part.start == 0 and batch:
                yield batch
                batch = []
            batch.append(number)
        if batch:
            yield batch


def of(batches: Images | Sequence[tuple[Tensor, ...]]) -> Images:
    """Batches that somebody holds already, as they are."""
    return batches if isinstance(batches, Images) else Images(batches)
