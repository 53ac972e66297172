"""The calibration images of a run: one choice of training images, in one order, for all that looks at the model through them.

How many go through a model at once depends on what is kept of each pass, not on who asks; the sizes stand here, because another
one adds the same numbers in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.data.splits import Batch, Split
from compress.ranks import Ranks, Share

STATISTICS = 125
"""Images of a pass that adds up statistics of every layer."""
ROWS = 250
"""Images of a pass that keeps the values of a layer for a least-squares fit."""
MAPS = 32
"""Images of a pass that looks at every feature map, pixel by pixel."""


@dataclass(frozen=True)
class Calibration:
    """The first `images` of a split in the order that its seed gives.

    Attributes:
        split: the training images.
        images: how many; never more than there are.
        seed: of the choice.
    """

    split: Split
    images: int
    seed: int

    def batches(self, size: int = STATISTICS, *, most: int | None = None, device: torch.device | str = "cpu") -> Iterator[Batch]:
        """In batches of `size`, the first `most` of them where that is fewer.

        Raises:
            EmptyData: there is no image.
        """
        limit = self.images if most is None else min(most, self.images)
        return self.split.batches(size, limit=limit, seed=self.seed, device=device)

    def inputs(
        self,
        size: int = STATISTICS,
        *,
        most: int | None = None,
        device: torch.device | str = "cpu",
        share: Share | None = None,
    ) -> Iterator[tuple[Tensor, ...]]:
        """The same, without what they should give; of a `share` only what it holds."""
        only = None if share is None else share.numbers
        limit = self.images if most is None else min(most, self.images)
        return (batch.inputs for batch in self.split.batches(size, limit=limit, seed=self.seed, device=device, only=only))

    def share(self, ranks: Ranks, size: int = STATISTICS) -> Share:
        """A process's share of the batches of `size`."""
        return ranks.share(self.split.count(size, self.images))
