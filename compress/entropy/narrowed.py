"""Channels of very many columns each, seen through a few directions of every one.

A linear layer behind a flattened map reads, say, 49 columns of each of 512 channels, and their second moments would take
gigabytes. Of the rows x_c of channel c, centered, with principal directions V_c of their covariance,

    z_c = V_c^T x_c          the directions of the largest variance, as many for each channel as fit

Leaving a channel out leaves all of its directions out, so losses by channel mean what they meant; what the other directions
would explain counts as never explained.
"""

from __future__ import annotations

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


def narrowed(x: Tensor, weight: Tensor, owner: Tensor, channels: int) -> tuple[Centered, Tensor]:
    """Moments of a layer's rows and of what it makes of them, through a few directions of each channel; and their owners.

    Args:
        x: rows, (n, q).
        weight: the layer's, (m, q).
        owner: (q,), the channel of each column; every channel has as many.
        channels: how many there are.
    """
    x = x - x.mean(0)
    y = (x @ weight.T).double()
    by_channel = x[:, owner.argsort(stable=True)].view(len(x), channels, -1)
    covariance = torch.einsum("ncs,nct->cst", by_channel, by_channel).double()
    # eigh gives the largest last.
    directions = torch.linalg.eigh(covariance).eigenvectors[:, :, -max(1, WIDEST // channels) :].float()
    z = torch.einsum("nct,ctk->nck", by_channel, directions).flatten(1)
    owner = torch.arange(channels).repeat_interleave(z.shape[1] // channels)
    z, rows = z.double(), len(x)
    zero = torch.zeros(1, z.shape[1], dtype=z.dtype), torch.zeros(1, y.shape[1], dtype=y.dtype)
    return Centered(*zero, *((a.T @ b)[None] / rows for a, b in ((z, z), (z, y), (y, y)))), owner
