"""The images that two models are compared on, part by part: as many at a time as go through both of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from compress.data.room import Held, Room
from compress.statistics.portions import Part, cut


class Images(Sequence[tuple[Tensor, ...]]):
    """Model inputs, on the device when they are asked for.

    Attributes:
        parts: which images of which batch each part has; what is drawn is drawn for whole batches.
        room: for the images, and for all that is held about them.
    """

    def __init__(self, batches: Iterable[tuple[Tensor, ...]], room: Room | None = None, most: int = 1 << 30):
        self.room, self.parts = room or Room(), list[Part]()
        self._inputs = Held(self.room)
        for batch in batches:
            for part in cut(len(batch[0]), most):
                self.parts.append(part)
                # Of their own: a part of a batch would keep all of it in memory.
                mine = part.of(batch)
                self._inputs.append(mine if part.images == part.whole else tuple(x.clone() for x in mine))

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, number: int) -> tuple[Tensor, ...]:  # type: ignore[override]
        return self._inputs[number]

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return (self[number] for number in range(len(self)))

    @property
    def samples(self) -> int:
        """Number of images."""
        return sum(part.images for part in self.parts)

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
