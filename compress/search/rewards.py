"""What a choice of channel counts is worth: spatial entropy, accuracy, or both.

With H_l the spatial entropy of the maps behind convolution l, on some held-out images,

    entropy    R = - mean over l of  H_l(smaller) / H_l(dense)
    accuracy   R = quality on the same images
    mixed      R = quality - mean over l of H_l(smaller) / H_l(dense)

A map that is constant has no entropy, so a search for little of it would find dead channels first. Such a map counts as if it had
the entropy of the dense layer: no credit, no penalty. Quality is told at every episode, whatever the reward.

Source: Musat and Andonie, "Pruning Convolutional Filters via Reinforcement Learning with Entropy Minimization" (arXiv
2312.04918), after AMC. Our reading: mean of ratios over layers; maps
behind the activation, at the layers of `statistics.spatial`; the formula of the article was not at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from compress.data import Batch
from compress.errors import UnsupportedModel
from compress.measure.quality import Metric, evaluate
from compress.statistics.spatial_maps import Watching, maps

REWARDS = ("entropy", "accuracy", "mixed")
_WATCHED = 64  # images whose maps are looked at: thousands of maps, whose mean hardly scatters


@dataclass(frozen=True)
class Outcome:
    """One episode's end.

    Attributes:
        reward: more is better.
        quality: on the images of the search, in the metric's unit.
        entropy: mean ratio of spatial entropies to the dense ones; None where the reward does not take it.
        constant: share of maps that are constant; None likewise.
    """

    reward: float
    quality: float
    entropy: float | None = None
    constant: float | None = None


@dataclass(frozen=True)
class Judge:
    """The reward of a smaller model.

    Attributes:
        kind: one of REWARDS.
        batches: images of the search, on the device.
        metric: of the quality.
        device: where models run.
        definition: of the spatial entropy; None where the reward does not take it.
        layers: spatial entropy of the dense model, by convolution, where there is any.
        answers: outputs of the dense model on the batches, for data without labels.
        quality: of the dense model on the images.
    """

    kind: str
    batches: tuple[Batch, ...]
    metric: Metric
    device: torch.device
    definition: str | None
    layers: dict[str, float]
    answers: tuple[Tensor, ...]
    quality: float

    def __call__(self, module: GraphModule) -> Outcome:
        run = Watching(module, self.definition, _WATCHED)
        quality = self._quality(run)
        signed = quality if self.metric.higher_is_better else -quality
        if self.definition is None:
            return Outcome(signed, quality)
        # A constant map counts as the dense layer's entropy: no credit for dead channels.
        ratios = [run.layers[path].credited(dense) / dense for path, dense in self.layers.items()]
        varied = sum(int(one.varied) for one in run.layers.values()) / max(sum(one.maps for one in run.layers.values()), 1)
        entropy = sum(ratios) / len(ratios)
        return Outcome(-entropy if self.kind == "entropy" else signed - entropy, quality, entropy, 1 - varied)

    def _quality(self, run: Callable[..., Any]) -> float:
        return evaluate(run, self.batches, self.metric, self.device, _playback(iter(self.answers))).value


def judge(
    module: GraphModule, kind: str, batches: tuple[Batch, ...], metric: Metric, device: torch.device, definition: str
) -> Judge:
    """A judge that knows the dense model.

    Raises:
        UnsupportedModel: the reward needs spatial entropy and no map of the model has any.
    """
    wanted = None if kind == "accuracy" else definition
    if wanted is not None:
        has_maps(module)
    run, answers = Watching(module, wanted, _WATCHED), list[Tensor]()

    def noted(*inputs: Tensor) -> Any:
        output = run(*inputs)
        answers.append(output)
        return output

    with torch.no_grad():
        for batch in batches:
            noted(*batch.inputs)
    # Layers of entropy 0 have no ratio.
    layers = {path: one.value for path, one in run.layers.items() if one.value > 0}
    if wanted is not None and not layers:
        raise UnsupportedModel(
            "Every feature map of the model is constant on the images of the search, so there is no spatial entropy to reward. "
            "Look for dead layers, or take --reward accuracy."
        )
    made = Judge(kind, batches, metric, device, wanted, layers, tuple(answers), 0.0)
    # Through the same function as episodes are judged by, with the dense answers in the model's place.
    return Judge(kind, batches, metric, device, wanted, layers, tuple(answers), made._quality(_playback(iter(answers))))


def has_maps(module: GraphModule) -> None:
    """Refuse a model without feature maps.

    Raises:
        UnsupportedModel: no convolution makes maps of at least 2 x 2 pixels.
    """
    if not maps(module):
        raise UnsupportedModel(
            "The model has no two-dimensional convolution with maps of 2 x 2 pixels or more, so there is no spatial entropy to "
            "reward. Take --reward accuracy, or --method entropic."
        )


def _playback(outputs: Iterator[Tensor]) -> Callable[..., Tensor]:
    """A model that gives known outputs, batch by batch."""
    return lambda *inputs: next(outputs)
