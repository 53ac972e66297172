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

from compress.errors import BadInput, EmptyData
from compress.measure import known_names, labels, metric_sums
from compress.measure.device import placed
from compress.measure.metric_sums import Sums
from compress.ranks import ALONE, Ranks
from compress.user import code

BATCH = 256
"""Samples that are measured at once."""
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


class Samples(Protocol):
    """What a batch must have; `compress.data.Batch` does."""

    @property
    def inputs(self) -> tuple[Tensor, ...]: ...
    @property
    def target(self) -> Tensor | None: ...


@dataclass(frozen=True)
class Metric:
    """How quality is counted.

    Attributes:
        points: points per unit of value: 100 for shares, so that 0.5 points are half a percent; 1 for native units.
        reference: "target", or "dense" where the dense model's outputs are the target even if there are labels.
        labels: outputs are compared by their largest class, so that the dense model's output counts as a class number.
        classes: axis of the outputs along which the classes lie.
        best: among how many of the largest outputs a sample's class has to be to count as a hit; 0 where no hits are counted.
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
    best: int = 0


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
    """(slices, sums) of one batch; sample by sample where each is a hit or none, and slices are wanted at all."""
    if metric.best and output.ndim == 2 and slices > 1:
        hit = metric_sums.hits(metric.best, output, target).double().cpu()
        return torch.stack([hit, torch.ones_like(hit)], 1)
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
    known_names.require({"metric": name})
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


def _custom(name: str) -> Metric:
    function = code.guarded(name, "--metric")

    def sums(output: Tensor, target: Tensor) -> Tensor:
        value = code.number(function(output, target), "--metric", name)
        # Times its samples: batches of different sizes then weigh by what they hold.
        return torch.tensor([value * len(output), float(len(output))], dtype=torch.float64)

    higher = bool(getattr(function, "higher_is_better", True))
    return Metric(name, sums, metric_sums.ratio, higher, float(getattr(function, "points", 1.0)), labels=False, sliceable=False)


METRICS: dict[str, Metric] = {
    "top1": Metric("top1", metric_sums.largest(1), metric_sums.ratio, best=1),
    "top5": Metric("top5", metric_sums.largest(5), metric_sums.ratio, best=5),
    "f1": Metric("f1", labels.found_labels, labels.mean_f1, labels=False),
    "label_accuracy": Metric("label_accuracy", labels.right_labels, metric_sums.ratio, labels=False),
    "mae": Metric("mae", metric_sums.absolute, metric_sums.ratio, higher_is_better=False, points=1.0, labels=False),
    "psnr": Metric("psnr", metric_sums.decibels, metric_sums.ratio, points=1.0, labels=False),
    "miou": Metric("miou", metric_sums.confusion, metric_sums.mean_iou),
    "agreement": Metric("agreement", metric_sums.largest(1), metric_sums.ratio, reference="dense", best=1),
    "perplexity": Metric(
        "perplexity", metric_sums.surprise, lambda total: math.exp(min(metric_sums.ratio(total), 700.0)), False, points=1.0
    ),
}
