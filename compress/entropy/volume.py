"""How much a layer stretches or squeezes what goes through it: the change of differential entropy, by its weights alone.

    linear        H(W x) = H(x) + log |det W|               sum of log singular values; the reduced set where W is not square
    convolution   H(C * x) = H(x) + (positions) log |c11|   c11: the first entry of a kernel, the diagonal of the map as a matrix

Natural logarithms: nats. A singular value or entry of 0 would be minus infinity, so each has 1e-8 added.

Source: Meni, White, Mayo, Pilkiewicz, "Entropy-based Guidance of Deep Neural Networks for Accelerated Convergence and Improved
Performance", 2023, arXiv:2308.14938; both formulas are for one channel. Readings of ours: the reduced set of singular values,
and the mean over the kernels of a filter that reads several channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

FLOOR = 1e-8


def singular_nats(weight: Tensor) -> Tensor:
    """Nats of each direction that a linear layer keeps: log (singular value + 1e-8).

    Args:
        weight: (outputs, inputs).

    Returns:
        (min(outputs, inputs),); their sum is the log-volume change of the layer.
    """
    return torch.log(torch.linalg.svdvals(weight) + FLOOR)


def corner_nats(weight: Tensor) -> Tensor:
    """Nats per position of each filter: log (|c11| + 1e-8), a mean over its kernels.

    Args:
        weight: (filters, channels of a group, *kernel).

    Returns:
        (filters,).
    """
    # Upper left entry of each kernel: the diagonal of the convolution as a matrix.
    first = weight[(..., *[0] * (weight.ndim - 2))]
    return torch.log(first.abs() + FLOOR).mean(1)
