"""Quality of a model on data: one number, summed over batches.

    top1, top5   share of samples whose class is among the 1 or 5 largest outputs
    agreement    share of samples (or pixels) for which the largest output is the dense model's; needs no labels
    miou         mean over classes of  intersection / union  of predicted and true pixels
    mae          mean |output - target|
    perplexity   exp of the mean cross entropy of tokens
    f1, label_accuracy   of labels that may hold at once (see `labels`)
    psnr         mean over images of  10 log10(1 / mean squared error), images on the scale 0-1, at most 100 dB

A metric adds up a few numbers per batch (`sums`) and turns their total into the value (`finish`), so memory does not grow
with the data. One logit for two classes counts as their two scores (see `labels`). Without labels the dense model's outputs
take the place of the target.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.errors import BadInput, EmptyData
from compress.measure import labels
from compress.measure.device import placed
from compress.ranks import ALONE, Ranks
from compress.user import code
from compress.user.wording import many

BATCH = 256
"""Samples that are measured at once."""
IGNORE = 255  # class number of mask pixels that count for nothing
NO_LABELS = "The metric {} needs labels, the data has none. Take --metric agreement, or give labeled data."
SUITABLE = {
    "classification": ("top1", "top5", "agreement"),
    "multilabel": ("f1", "label_accuracy"),
    "segmentation": ("miou", "top1", "top5", "agreement"),
    "regression": ("mae",),
    "image": ("psnr", "mae"),
    "text": ("perplexity", "top1", "top5", "agreement"),
}
"""Metrics that mean something for labels of a task."""
CLASSES = {"classification": 1, "segmentation": 1, "text": -1}
"""Axis of the outputs' classes, for the tasks that have them."""
LARGEST_PSNR = 100.0  # decibels: the mean over images stays finite where one is reproduced exactly


class Samples(Protocol):
    """What a batch must have; `compress.data.Batch` does."""

    @property
    def inputs(self) -> tuple[Tensor, ...]: ...
    @property
    def target(self) -> Tensor | None: ...


Sums = Callable[[Tensor, Tensor], Tensor]
"""(output, target) -> a vector of numbers to be added over batches."""


@dataclass(frozen=True)
class Metric:
    """How quality is counted.

    Attributes:
        points: points per unit of value: 100 for shares, so that 0.5 points are half a percent; 1 for native units.
        reference: "target", or "dense" where the dense model's outputs are the target even if there are labels.
        labels: outputs are compared by their largest class, so that the dense model's output counts as a class number.
        classes: axis of the outputs along which the classes lie.
        sliceable: the sums of a batch are those of its slices, added; nobody knows that of a user's function.
    """

    name: str
    sums: Sums
    finish: Callable[[Tensor], float]
    higher_is_better: bool = True
    points: float = 100.0
    reference: str = "target"
    labels: bool = True
    sliceable: bool = True
    classes: int = 1


@dataclass(frozen=True)
class Quality:
    """A measured value: a share in 0-1, decibels or the data's units, and the number of samples behind it."""

    metric: str
    value: float
    samples: int
    higher_is_better: bool = True
    points: float = 100.0

    @property
    def standard_error(self) -> float:
        """Of a share of samples, sqrt(q (1 - q) / n); 0 for metrics of which none is known."""
        share = self.metric in ("top1", "top5", "agreement")
        return math.sqrt(max(0.0, self.value * (1 - self.value)) / self.samples) if share else 0.0


@dataclass(frozen=True)
class Counted:
    """What a metric added up, slice of samples by slice: (slices, sums)."""

    slices: Tensor
    samples: int


def evaluate(
    module: Callable[..., Any],
    batches: Iterable[Samples],
    metric: Metric,
    device: torch.device | str = "cpu",
    teacher: Callable[..., Any] | None = None,
) -> Quality:
    """Quality of a model over batches, in float32 and eval mode; the model is left as it was.

    Args:
        module: a module, or any callable from input tensors to outputs, such as a runtime's session.
        batches: inputs and targets; `Split.batches` gives them.
        metric: what to count, from `METRICS` or `choose`.
        device: where it is computed.
        teacher: the dense model; needed for agreement, and where batches have no target.

    Raises:
        BadInput: a target is needed and there is none, or it does not fit the output.
        EmptyData: no batch.
    """
    return finished(count(module, batches, metric, device, teacher), metric)


def finished(counted: Counted, metric: Metric) -> Quality:
    """The value of a metric from what it added up."""
    value = metric.finish(counted.slices.sum(0))
    return Quality(metric.name, value, counted.samples, metric.higher_is_better, metric.points)


def count(
    module: Callable[..., Any],
    batches: Iterable[Samples],
    metric: Metric,
    device: torch.device | str = "cpu",
    teacher: Callable[..., Any] | None = None,
    slices: int = 1,
    ranks: Ranks = ALONE,
) -> Counted:
    """What `evaluate` adds up, in so many slices of each batch, over the batches of all `ranks`; the rest is the same."""
    found: list[Tensor] = []
    samples = 0
    with torch.no_grad(), _measuring(module, device) as answer, _measuring(teacher, device) as reference:
        for batch in batches:
            inputs = tuple(x.to(device) for x in batch.inputs)
            output = first_output(answer(*inputs)).float()
            if bool(output.isnan().any()):  # the largest of NaN is class 0: a wrong number without any sign of it
                raise BadInput(f"The model's output is NaN on some data, so {metric.name} means nothing. Look for NaN weights.")
            output = _with_classes_first(metric, output) if metric.labels else output
            target = _target(metric, batch.target, inputs, reference).to(output.device)
            found.append(_sliced(metric, output, target, slices if metric.sliceable else 1))
            samples += len(output)
    found, samples = [rows for part in ranks.gathered(found) for rows in part], sum(ranks.gathered(samples))
    if not found:
        raise EmptyData(f"There is no sample to measure {metric.name} on. Give more data.")
    return Counted(torch.cat(found), samples)


def _sliced(metric: Metric, output: Tensor, target: Tensor, slices: int) -> Tensor:
    """(slices, sums) of one batch."""
    parts = zip(output.tensor_split(slices), target.tensor_split(slices), strict=True)
    # in float64: counts of many batches are added; batches smaller than the number of slices leave some empty
    return torch.stack([metric.sums(y, t).double().cpu() for y, t in parts if len(y)])


def choose(name: str, task: str, labeled: bool) -> tuple[Metric, str]:
    """The metric of a name, `auto` or `module:function`, and one sentence about it.

    A user's function takes (output, target) and gives the batch's mean; its attributes `higher_is_better` (default True) and
    `points` (default 1: native units; 100 for shares) are honored.

    Raises:
        BadInput: an unknown name, one that does not suit the task, or one that needs labels where there are none.
    """
    if ":" in name:
        return _custom(name), f"Quality is {name}, averaged over samples."
    if name == "auto":
        chosen = SUITABLE[task][0]
        chosen = chosen if labeled else "agreement" if task in CLASSES else chosen
        against = "" if labeled else " with the dense model, for lack of labels"
        said = f"Quality is {chosen}{against}: chosen for the task {task}; --metric takes another."
        return _suited(METRICS[chosen], task), said
    if name not in METRICS:
        raise BadInput(f"The metric is '{name}'; known are auto, {', '.join(METRICS)} and module:function.")
    metric = METRICS[name]
    # Without labels anything can be compared with the dense model, but no largest output says which hold.
    if (labeled or task == "multilabel") and name not in SUITABLE[task]:
        raise BadInput(
            f"The metric {name} does not suit the task {task}; needed is {' or '.join(SUITABLE[task])}, or module:function. "
            "If the task is another, set task in a data.toml."
        )
    if not labeled and metric.labels and metric.reference == "target":
        raise BadInput(NO_LABELS.format(name))
    against = "" if labeled and metric.reference == "target" else ", compared with the dense model"
    return _suited(metric, task), f"Quality is {name}{against}."


def _suited(metric: Metric, task: str) -> Metric:
    """The metric for outputs as this task has them."""
    return replace(metric, classes=CLASSES.get(task, 1)) if metric.labels else metric


def better(one: Quality, other: Quality) -> bool:
    """The first is strictly better than the second."""
    return one.value > other.value if one.higher_is_better else one.value < other.value


def first_output(output: Any) -> Tensor:
    """The tensor that is measured: the output itself, the first one of a tuple or list; of a dict its logits, else the first."""
    while not isinstance(output, Tensor):
        if isinstance(output, dict) and output:
            output = output.get("logits", next(iter(output.values())))
        elif isinstance(output, tuple | list) and output:
            output = output[0]
        else:
            raise BadInput(f"The model gives a {type(output).__name__}; needed is a tensor, or a tuple or dict of tensors.")
    return output


def _target(metric: Metric, target: Tensor | None, inputs: tuple[Tensor, ...], teacher: Callable[..., Any] | None) -> Tensor:
    if target is not None and metric.reference == "target":
        return target
    if target is None and metric.reference == "target" and metric.labels:
        raise BadInput(NO_LABELS.format(metric.name))
    if teacher is None:
        raise BadInput(f"The metric {metric.name} compares with the dense model here, and none was given.")
    output = first_output(teacher(*inputs)).float()
    return _with_classes_first(metric, output).argmax(1) if metric.labels else output


def _with_classes_first(metric: Metric, output: Tensor) -> Tensor:
    """Scores (n, classes, ...), two for one logit."""
    return labels.scores(output.movedim(metric.classes, 1) if output.ndim > 1 else output)


@contextmanager
def _measuring(model: Any, device: torch.device | str) -> Iterator[Any]:
    """The model on a device and in eval mode for the time of a `with`; anything that is no module answers as it is."""
    if not isinstance(model, nn.Module):
        yield model
        return
    # Each part by itself: a model may have some parts in eval mode on purpose, such as frozen norms.
    modes = {part: part.training for part in model.modules()}
    try:
        yield placed(model.eval(), device)
    finally:
        for part, mode in modes.items():
            part.training = mode


def _ratio(sums: Tensor) -> float:
    return float(sums[0] / sums[1].clamp_min(1))  # no sample counted: 0 of 1


def _largest(count: int) -> Sums:
    def sums(output: Tensor, target: Tensor) -> Tensor:
        if output.ndim < 2 or target.shape != (len(output), *output.shape[2:]):
            raise BadInput(f"Outputs of shape {tuple(output.shape)} have no classes for labels of shape {tuple(target.shape)}.")
        # topk of at most as many classes as there are.
        hit = (output.topk(min(count, output.shape[1]), dim=1).indices == target.unsqueeze(1)).any(1)
        counted = target != IGNORE if output.ndim > 3 else torch.ones_like(hit)  # of pixels; tokens have any number
        return torch.stack([(hit & counted).sum(), counted.sum()])

    return sums


def _confusion(output: Tensor, target: Tensor) -> Tensor:
    classes = output.shape[1]
    if target.shape != (len(output), *output.shape[2:]):
        raise BadInput(f"Outputs of shape {tuple(output.shape)} do not fit masks of shape {tuple(target.shape)}.")
    counted = (target != IGNORE) & (target >= 0)
    if bool((target[counted] >= classes).any()):
        raise BadInput(f"The masks reach class {int(target[counted].max())}, the model has {many(classes, 'output')}.")
    # A pair (true, predicted) as one number, counted by one bincount.
    pairs = target[counted] * classes + output.argmax(1)[counted]
    return pairs.bincount(minlength=classes * classes)


def _mean_iou(sums: Tensor) -> float:
    counts = sums.view(round(len(sums) ** 0.5), -1)
    both, either = counts.diagonal(), counts.sum(0) + counts.sum(1) - counts.diagonal()
    # Classes that occur neither in masks nor in predictions say nothing, and are left out of the mean.
    return float((both / either)[either > 0].mean()) if bool((either > 0).any()) else 0.0


def same_shape(output: Tensor, target: Tensor) -> Tensor:
    """The target in the output's shape; (n,) and (n, 1) are the same thing.

    Raises:
        BadInput: another number of values, which arithmetic would broadcast silently.
    """
    if output.shape != target.shape and (output.numel() != target.numel() or len(output) != len(target)):
        shapes = f"{tuple(output.shape)}, the target {tuple(target.shape)}"
        raise BadInput(f"The model's output has the shape {shapes}; needed is the same.")
    return target.reshape(output.shape)


def _absolute(output: Tensor, target: Tensor) -> Tensor:
    error = (output - same_shape(output, target)).abs()
    return torch.stack([error.sum(), torch.tensor(float(error.numel()), device=error.device)])


def _surprise(output: Tensor, target: Tensor) -> Tensor:
    if target.shape != (len(output), *output.shape[2:]):
        raise BadInput(f"Outputs of shape {tuple(output.shape)} have no classes for tokens of shape {tuple(target.shape)}.")
    nats = functional.cross_entropy(output.float(), target, reduction="sum").double()
    return torch.stack([nats, torch.tensor(float(target.numel()), device=nats.device, dtype=torch.float64)])


def _decibels(output: Tensor, target: Tensor) -> Tensor:
    squared = (output - same_shape(output, target)).square().flatten(1).mean(1)
    each = (-10 * squared.clamp_min(10 ** (-LARGEST_PSNR / 10)).log10()).double()
    return torch.stack([each.sum(), torch.tensor(float(len(each)), device=each.device, dtype=torch.float64)])


def _custom(name: str) -> Metric:
    function = code.guarded(name, "--metric")

    def sums(output: Tensor, target: Tensor) -> Tensor:
        value = code.number(function(output, target), "--metric", name)
        # Times its samples: batches of different sizes then weigh by what they hold.
        return torch.tensor([value * len(output), float(len(output))], dtype=torch.float64)

    how = bool(getattr(function, "higher_is_better", True)), float(getattr(function, "points", 1.0))
    return Metric(name, sums, _ratio, *how, labels=False, sliceable=False)


METRICS: dict[str, Metric] = {
    "top1": Metric("top1", _largest(1), _ratio),
    "top5": Metric("top5", _largest(5), _ratio),
    "f1": Metric("f1", labels.found_labels, labels.mean_f1, labels=False),
    "label_accuracy": Metric("label_accuracy", labels.right_labels, _ratio, labels=False),
    "mae": Metric("mae", _absolute, _ratio, higher_is_better=False, points=1.0, labels=False),
    "psnr": Metric("psnr", _decibels, _ratio, points=1.0, labels=False),
    "miou": Metric("miou", _confusion, _mean_iou),
    "agreement": Metric("agreement", _largest(1), _ratio, reference="dense"),
    "perplexity": Metric("perplexity", _surprise, lambda sums: math.exp(min(_ratio(sums), 700.0)), False, points=1.0),
}
