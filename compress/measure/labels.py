"""Outputs that decide for labels one by one: one logit for two classes, and any number of labels that may hold at once.

A logit z decides for its label where z > 0.

    one logit       the scores of the two classes are (0, z): their softmax is (1 - sigmoid(z), sigmoid(z)), the largest one is
                    class 1 where z > 0, and their cross entropy is the binary one
    k labels        label_accuracy   share of labels that are right, over all samples
                    f1               mean over labels of  2 TP / (2 TP + FP + FN);  rare labels weigh as much as frequent ones
                    loss             mean over labels of the binary cross entropy
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from compress.errors import BadInput


def scores(output: Tensor, axis: int = 1) -> Tensor:
    """Scores of classes: two for one logit, anything else as it is.

    Args:
        output: (n, classes, ...), or (n,) for one logit.
        axis: of the classes.
    """
    output = output[:, None] if output.ndim == 1 else output
    if output.shape[axis] != 1:
        return output
    # In front: class 0 is the one that is left when the logit says no.
    return torch.cat((torch.zeros_like(output), output), axis)


def binary_divergence(output: Tensor, dense: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(sigmoid(dense / T) || sigmoid(output / T)), averaged over samples and labels."""
    now, then = (functional.log_softmax(scores(x.reshape(-1, 1)) / temperature, 1) for x in (output, dense))
    return functional.kl_div(now, then, reduction="none", log_target=True).sum(1).mean() * temperature**2


def drawn(output: Tensor, task: str, generator: torch.Generator) -> Tensor | None:
    """Labels drawn from the model's own probabilities; None where the outputs (n, k) are none.

    Drawn on the CPU, so that the same labels are drawn on every device.

    Raises:
        BadInput: scores of a model that are NaN or infinite.
    """
    if task == "multilabel":
        return torch.bernoulli(output.detach().sigmoid().cpu(), generator=generator).to(output.device)
    if classes(output, task):
        chances = scores(output).detach().softmax(1).cpu()
        if not bool(chances.isfinite().all()):
            raise BadInput("The model gives NaN or infinite scores. Look for damaged weights, or data it was not trained on.")
        return torch.multinomial(chances, 1, generator=generator)[:, 0].to(output.device)
    return None


def classes(output: Tensor, task: str) -> bool:
    """Whether an output decides between classes, or for labels."""
    return task == "multilabel" or (task == "classification" and output.ndim <= 2)


def surprise(output: Tensor, labels: Tensor, task: str, reduction: str = "mean") -> Tensor:
    """Cross entropy of class numbers, or the binary one of labels."""
    if task == "multilabel":
        return functional.binary_cross_entropy_with_logits(output, labels.to(output), reduction=reduction)
    return functional.cross_entropy(scores(output), labels, reduction=reduction)


def right_labels(output: Tensor, target: Tensor) -> Tensor:
    """Sums of `label_accuracy`: (right, all)."""
    decided, wanted = _decided(output, target)
    return torch.stack([(decided == wanted).sum(), torch.tensor(wanted.numel(), device=wanted.device)])


def found_labels(output: Tensor, target: Tensor) -> Tensor:
    """Sums of `f1`: TP, FP and FN of every label, one after the other."""
    decided, wanted = _decided(output, target)
    return torch.cat([(decided & wanted).sum(0), (decided & ~wanted).sum(0), (~decided & wanted).sum(0)])


def mean_f1(sums: Tensor) -> float:
    """The mean over labels; those that neither occur nor are predicted say nothing, and are left out."""
    found, wrong, missed = sums.view(3, -1)
    whole = 2 * found + wrong + missed
    return float((2 * found / whole)[whole > 0].mean()) if bool((whole > 0).any()) else 0.0


def _decided(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(what is decided, what is right), (n, k); a target may be the outputs of the dense model."""
    if output.ndim == 1:
        output = output[:, None]
    if target.shape != output.shape:
        raise BadInput(f"Outputs of shape {tuple(output.shape)} do not fit labels of shape {tuple(target.shape)}.")
    return output > 0, target > 0
