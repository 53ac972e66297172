"""Which weights to prune so that whole layers become linear: the budget of NEPENTHE and EGP.

With H_l the state entropy behind layer l and W_l its weights,

    I_l = H_l mean |W_l|, over the weights that are left        R_l = (sum_k I_k) / I_l
    share_l = exp(R_l) / sum_k exp(R_k)                         n_l = min(share_l n, weights left in l)

and what a full layer cannot take is shared out again among the others. Layers with H_l = 0 are linear already and take no part.
The softmax over 1 / I puts nearly the whole budget into the layer of the lowest entropy: it is to collapse.

Source: Liao, Quétu, Nguyen, Tartaglione, "Can Unstructured Pruning Reduce the Depth in Deep Neural Networks?", ICCVW 2023 (EGP),
and NEPENTHE, arXiv:2404.16890, by the same authors, whose entropy is averaged over the neurons of non-zero entropy. Our reading:
the text and the code of NEPENTHE were not at hand; the budget follows EGP, the average NEPENTHE's description.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def layer_entropy(entropy: Tensor) -> float:
    """Mean over the channels that still switch, bits; 0 where none does.

    Args:
        entropy: (channels,), bits per channel.
    """
    switching = entropy[entropy > 0]
    return float(switching.mean()) if len(switching) else 0.0


def budgets(entropies: Sequence[float], weights: Sequence[Tensor], share: float) -> list[int]:
    """How many weights each layer loses.

    Args:
        entropies: bits, per layer.
        weights: per layer; zeros are gone already.
        share: of all weights that are left in layers which take part, in (0, 1].
    """
    left = [int((w != 0).sum()) for w in weights]
    # Entropy 0 means linear already: no weight need go for it.
    open_ = [i for i, (h, n) in enumerate(zip(entropies, left, strict=True)) if h > 0 and n > 0]
    budget, result = share * sum(left[i] for i in open_), [0] * len(left)
    # I_l of the docstring.
    importance = {i: entropies[i] * float(weights[i].abs().sum()) / left[i] for i in open_}
    while open_ and budget >= 1:
        relevance = torch.tensor([sum(importance[k] for k in open_) / importance[i] for i in open_], dtype=torch.float64)
        wanted = {i: budget * float(s) for i, s in zip(open_, relevance.softmax(0), strict=True)}
        # Full layers take what they have; the rest of their share goes to the others in the next round.
        full = [i for i in open_ if wanted[i] >= left[i]]
        for i in full or open_:
            result[i] = left[i] if i in full else int(wanted[i])
            budget -= result[i]
        if not full:
            break
        open_ = [i for i in open_ if i not in full]
    return result


def smallest(weight: Tensor, count: int) -> Tensor:
    """Mask of the weight's shape that is False at zeros and at the `count` smallest other entries."""
    size = weight.abs().flatten()
    # Zeros come first in the order and are gone already.
    gone = int((size == 0).sum()) + count
    mask = torch.ones_like(size, dtype=torch.bool)
    # Stable, so that equal weights go in the same order on every machine.
    mask[size.argsort(stable=True)[:gone]] = False
    return mask.view(weight.shape)
