"""Which segments of a network to merge: disjoint ones, the most time saved for a bounded loss.

    maximize  sum gain_k   subject to   sum loss_k <= limit,   chosen spans disjoint

With the spans sorted by where they stop, and the loss counted in `LEVELS` steps of the limit, rounded up so that the limit holds,

    best[m, t] = max( best[m - 1, t],  max over spans k stopping at m of  best[start_k, t - loss_k] + gain_k )

Source: Kim, Jeong, Song, "Efficient Latency-Aware CNN Depth Compression via Two-Stage Dynamic Programming", ICML 2023, section 4.
Departs from it: the losses are bounded and the time is maximized, so that one table serves every limit, and the losses of
the segments are measured without training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVELS = 1000


@dataclass(frozen=True)
class Span:
    """One segment that can be merged.

    Attributes:
        start, stop: positions in the order of the network's layers; `stop` is not included.
        gain: time saved, in any unit.
        loss: what it is estimated to cost, in any unit; below 0 counts as 0.
    """

    start: int
    stop: int
    gain: float
    loss: float


def choose(spans: Sequence[Span], limit: float) -> tuple[int, ...]:
    """Indices of the chosen spans, in the order of the network. Spans that gain nothing are never chosen.

    Args:
        spans: candidates; they may overlap.
        limit: sum of the losses that is allowed; 0 allows spans without loss only, infinity everything.
    """
    # A span that costs more than the limit alone can never be chosen.
    useful = [i for i, span in enumerate(spans) if span.gain > 0 and span.stop > span.start and max(span.loss, 0.0) <= limit]
    if not useful:
        return ()
    price = [_levels(spans[i].loss, limit) for i in useful]
    last = max(spans[i].stop for i in useful)
    best = np.zeros((last + 1, LEVELS + 1))
    taken = np.full((last + 1, LEVELS + 1), -1)
    for m in range(1, last + 1):
        # What was best without the layers up to m stays possible: m may belong to no span.
        best[m] = best[m - 1]
        for number, i in enumerate(useful):
            if spans[i].stop == m:
                cost = price[number]
                with_it = np.full(LEVELS + 1, -math.inf)
                with_it[cost:] = best[spans[i].start, : LEVELS + 1 - cost] + spans[i].gain
                better = with_it > best[m]
                best[m][better], taken[m][better] = with_it[better], number
    chosen: list[int] = []
    m, t = last, LEVELS
    while m > 0:
        number = int(taken[m, t])
        # From the end backwards: a number at m says that the span stopping there is part of the best.
        if number < 0:
            m -= 1
            continue
        chosen.append(useful[number])
        m, t = spans[useful[number]].start, t - price[number]
    return tuple(reversed(chosen))


def _levels(loss: float, limit: float) -> int:
    """A loss in steps of the limit, rounded up."""
    if loss <= 0 or math.isinf(limit):
        return 0
    # Rounded up, so that the sum of the true losses is never above the limit; 1e-9 forgives floating point.
    return min(LEVELS, math.ceil(loss / limit * LEVELS - 1e-9))
