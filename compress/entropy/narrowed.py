"""Channels of very many columns each, seen through a few directions of every one.

A linear layer behind a flattened map reads, say, 49 columns of each of 512 channels, and their second moments would take
gigabytes. Of the rows x_c of channel c, centered, with principal directions V_c of their covariance,

    z_c = V_c^T x_c          the directions of the largest variance, as many for each channel as fit

Leaving a channel out leaves all of its directions out, so losses by channel mean what they meant; what the other directions
would explain counts as never explained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from compress.entropy.moments import Centered

WIDEST = 4608
"""Columns beyond which directions are taken: those of a 3x3 convolution on 512 channels."""


def taps(owner: Tensor, channels: int) -> int | None:
    """Columns of each channel; None where some stay whatever goes, or the numbers differ."""
    if bool((owner < 0).any()):
        return None
    counts = torch.bincount(owner, minlength=channels)
    return int(counts[0]) if bool((counts == counts[0]).all()) else None


def narrowed(parts: Callable[[], Iterable[Tensor]], weight: Tensor, owner: Tensor, channels: int) -> tuple[Centered, Tensor]:
    """Moments of a layer's rows and of what it makes of them, through a few directions of each channel; and their owners.

    Args:
        parts: starts a pass over the rows, (n, q) of them at a time: all at once may be gigabytes.
        weight: the layer's, (m, q).
        owner: (q,), the channel of each column; every channel has as many.
        channels: how many there are.
    """
    by_owner = owner.argsort(stable=True)
    count, total = 0, torch.zeros(len(owner), dtype=torch.float64)
    for x in parts():
        count, total = count + len(x), total + x.sum(0, dtype=torch.float64)
    mean = (total / count).float()

    def centered() -> Iterator[tuple[Tensor, Tensor]]:
        for x in parts():
            rows = x - mean
            yield rows, rows[:, by_owner].view(len(x), channels, -1)

    covariance = torch.zeros(channels, len(owner) // channels, len(owner) // channels, dtype=torch.float64)
    for _, by_channel in centered():
        covariance += torch.einsum("ncs,nct->cst", by_channel, by_channel)
    # eigh gives the largest last.
    directions = torch.linalg.eigh(covariance).eigenvectors[:, :, -max(1, WIDEST // channels) :].float()
    width = channels * directions.shape[2]
    sizes = (width, width), (width, len(weight)), (len(weight), len(weight))
    sums = [torch.zeros(1, *size, dtype=torch.float64) for size in sizes]
    for rows, by_channel in centered():
        z = torch.einsum("nct,ctk->nck", by_channel, directions).flatten(1).double()
        y = (rows @ weight.T).double()
        for found, (a, b) in zip(sums, ((z, z), (z, y), (y, y)), strict=True):
            found[0].addmm_(a.T, b, alpha=1 / count)
    zero = (torch.zeros(1, n, dtype=torch.float64) for n in (width, len(weight)))
    return Centered(*zero, *sums), torch.arange(channels).repeat_interleave(directions.shape[2])
