"""How sure a loss of quality is: both models saw the same samples, so what is hard for both cancels.

Where a sample is a hit or none, what is lost is the difference of two shares of the same n samples:

    d = points * (a - b),   a = share of hits lost,   b = share of hits won;   ci95 by Wilson's intervals of a and b (`paired`)

Where no sample can be won, because the dense model is compared with itself, that is a alone. So three samples lost of 60 are not
perhaps none, and none lost of 60 may be five of the next hundred: drawing from the samples again would say either.

Any other metric: a paired bootstrap over slices of the test data.

    d = points * (metric(dense) - metric(now)),   both resampled with the same slices;   ci95 = percentiles of d

Where two models of 90 % disagree on 1 % of 10,000 samples,
the interval is 0.2 points to either side, not the 0.8 of two unrelated samples. Slices of a few samples serve any metric that
adds up, intersection over union included. There models that agree on every slice get an interval of no width, which says nothing
of samples that are rarer than one in the test data.
Source: Newcombe, Statistics in Medicine 17, 1998, for shares; Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
chapter 13.
"""

from __future__ import annotations

import numpy as np
import torch

from compress.measure.intervals import paired, share
from compress.measure.points import fallen
from compress.measure.quality import Counted, Metric

SLICES = 64
"""Per batch, where samples are no hits: enough to see how a metric scatters over samples, without a row for each of them."""
RESAMPLES = 1000


def drop_interval(metric: Metric, dense: Counted, now: Counted, seed: int = 0) -> tuple[float, float] | None:
    """95 % confidence interval of the points lost; negative ends are gains. None where there is but one slice of
    samples that are no hits.

    Raises:
        ValueError: the two were not counted on the same slices.
    """
    if dense.slices.shape != now.slices.shape:
        raise ValueError(f"slices {tuple(dense.slices.shape)} and {tuple(now.slices.shape)}: needed are the same samples")
    number = len(now.slices)
    if metric.best and number == now.samples and bool((dense.slices[:, 1] == 1).all()):
        return _of_hits(metric, dense.slices[:, 0], now.slices[:, 0])
    if number < 2:
        return None
    random = np.random.default_rng(seed)
    lost: list[float] = []
    for _ in range(RESAMPLES):
        # How often each slice was drawn is its weight: no copy of the slices per resample.
        weights = torch.from_numpy(np.bincount(random.integers(0, number, number), minlength=number)).double()
        # The same weights for both models: what is hard for both cancels (docstring).
        before, after = (metric.finish(weights @ counted.slices) for counted in (dense, now))
        lost.append(fallen(before, after, metric.higher_is_better) * metric.points)
    low, high = np.percentile(lost, [2.5, 97.5])
    return float(low), float(high)


def _of_hits(metric: Metric, dense: torch.Tensor, now: torch.Tensor) -> tuple[float, float]:
    """The interval of hits lost: `dense` and `now` are 1 where a sample is a hit."""
    lost, won = (share(float((one > other).double().mean()), len(now)) for one, other in ((dense, now), (now, dense)))
    # A model always agrees with itself: nothing can be won.
    certain = metric.reference == "dense" and bool(dense.all())
    found = lost if certain else paired(lost, won)
    return found.low * metric.points, found.high * metric.points
