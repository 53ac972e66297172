"""What training minimizes.

    loss = (1 - d) * task(output, target) + d * distillation(output, dense output)

    task           cross entropy for classes (pixels of class 255 count for nothing) and tokens, binary cross entropy for labels
                   that may hold at once, mean squared error otherwise
    distillation   T^2 * KL(softmax(dense / T) || softmax(output / T)) for classes, the same by sigmoids for labels, mean squared
                   error otherwise

One logit for two classes counts as their two scores: their cross entropy is the binary one (see `measure.labels`).

d is 1 where there are no labels and 0 where there is no dense model. T^2 keeps the gradient's scale independent of T
(Hinton, Vinyals, Dean, 2015, arXiv:1503.02531, section 2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional

from compress.errors import BadInput
from compress.measure import known_names
from compress.measure.labels import binary_divergence, scores, surprise
from compress.measure.metric_sums import IGNORE, same_shape
from compress.measure.quality import CLASSES, first_output
from compress.recipe import Recipe
from compress.user import code

Objective = Callable[[Any, Tensor | None, Tensor | None], Tensor]
"""(model output, target, dense model's output) -> loss, a scalar."""


def objective(recipe: Recipe, task: str, labeled: bool, teacher: bool) -> tuple[Objective, str]:
    """The loss of a training, and one sentence about it.

    A user's function (`--loss module:function`) is given the model's whole output and the target.

    Raises:
        BadInput: neither labels nor a dense model, or an unknown loss.
    """
    if not labeled and not teacher:
        raise BadInput("There are neither labels nor a dense model to learn from. Give labeled data.")
    kind = _default(task) if recipe.loss == "auto" else recipe.loss
    by_labels = _by_labels(kind, task)
    share = taught(recipe, labeled, teacher)

    def loss(output: Any, target: Tensor | None, dense: Tensor | None) -> Tensor:
        total = output_loss = None
        if share < 1 and target is not None:
            total = (1 - share) * by_labels(output, target)
        if share > 0 and dense is not None:
            # Only the first output is taught: what auxiliary heads of the dense model say is not used.
            output_loss = share * distillation(first_output(output).float(), dense.float(), task, recipe.temperature)
        if total is None or output_loss is None:
            found = total if total is not None else output_loss
            assert found is not None, "the share decides for at least one of the two"
            return found
        return total + output_loss

    name = f"{kind}, the default for the task" if recipe.loss == "auto" else kind
    parts = [f"{1 - share:.0%} labels ({name})"] * (share < 1) + [f"{share:.0%} the dense model's outputs"] * (share > 0)
    return loss, f"The training loss is {' and '.join(parts)}."


def distillation(output: Tensor, dense: Tensor, task: str, temperature: float) -> Tensor:
    """Distance of the outputs from the dense model's, averaged over samples (and pixels).

    Args:
        output: (n, classes, ...) for classification and segmentation, (n, t, classes) for text, any shape otherwise.
        dense: of the same shape.
        task: of the data.
        temperature: softens both distributions.
    """
    if task in CLASSES:
        axis = CLASSES[task]
        now, then = (functional.log_softmax(scores(x, axis) / temperature, axis) for x in (output, dense))
        # KL in logarithms throughout: no probability is rounded to 0.
        return functional.kl_div(now, then, reduction="none", log_target=True).sum(axis).mean() * temperature**2
    if task == "multilabel":
        return binary_divergence(output, same_shape(output, dense), temperature)
    return functional.mse_loss(output, same_shape(output, dense))


def taught(recipe: Recipe, labeled: bool, teacher: bool) -> float:
    """The weight of the distillation loss: all of it without labels, none of it without a dense model."""
    return 0.0 if not teacher else 1.0 if not labeled else recipe.distill


def _default(task: str) -> str:
    return "cross_entropy" if task in CLASSES else "bce" if task == "multilabel" else "mse"


def _by_labels(name: str, task: str) -> Callable[[Any, Tensor], Tensor]:
    if ":" in name:
        return code.guarded(name, "--loss")
    known_names.require({"loss": name})
    if (name == "cross_entropy") != (task in CLASSES) or (name == "bce") != (task == "multilabel"):
        raise BadInput(f"The loss {name} does not suit the task {task}. Take --loss auto, or a function of your own.")

    def loss(output: Any, target: Tensor) -> Tensor:
        first = first_output(output).float()
        if name == "cross_entropy":
            first = scores(first.movedim(CLASSES[task], 1) if first.ndim > 1 else first)
            # Class 255 means "no class" in masks; anywhere else it is a class like any other, and -100 is torch's default.
            return functional.cross_entropy(first, target, ignore_index=IGNORE if task == "segmentation" else -100)
        target = same_shape(first, target)
        if name == "bce":
            return surprise(first, target, task)
        return functional.mse_loss(first, target) if name == "mse" else functional.l1_loss(first, target)

    return loss
