"""One streaming pass over the dense model: on-counts of activations, input moments and output Fisher matrices of consumers.

    forward      every batch;  input rows at sampled positions -> moments;  signs at activations -> states
    backward     one batch in `fisher_every`;  g = d loss / d (layer output), G = mean over images of sum over positions of g g^T

The labels of the loss are drawn from the model's own probabilities, so that G is the Fisher matrix and needs no data labels;
models that do not classify take a unit Gaussian direction in output space instead (G = J^T J). A consumer's targets are linear in
its inputs, so no second sum is needed for them. Memory: the Gram matrices of as many consumers as fit `memory`, at least one;
more passes otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.entropy.estimators import BatchMean
from compress.entropy.moments import Moments
from compress.entropy.state import States
from compress.errors import EmptyData
from compress.measure.labels import drawn, surprise
from compress.measure.quality import first_output
from compress.statistics.activation_states import observed, watch
from compress.statistics.layers import Layer, layers

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Sampling:
    """How much is looked at.

    Attributes:
        share: arithmetic of a layer's moments, relative to the layer's own forward pass.
        floor: rows per input column that a layer gets at least, where there are as many.
        ceiling: rows per input column that a layer gets at most.
        fisher_every: one batch in so many is differentiated.
        memory: bytes of Gram matrices held at once.
        seed: of positions and labels.
    """

    share: float = 0.25
    floor: float = 0.5
    ceiling: float = 64.0
    fisher_every: int = 8
    memory: float = 4e9
    seed: int = 0


@dataclass
class Statistics:
    """What one pass has seen.

    Attributes:
        moments: input moments by module path.
        fisher: G by module path, (outputs, outputs), float64.
        states: by path of the activation module.
        estimates: mean of batch entropies by the same path, where such an estimate was asked for.
        images: samples seen.
    """

    moments: dict[str, Moments] = field(default_factory=dict)
    fisher: dict[str, Tensor] = field(default_factory=dict)
    states: dict[str, States] = field(default_factory=dict)
    estimates: dict[str, BatchMean] = field(default_factory=dict)
    images: int = 0

    def bits(self, path: str) -> float:
        """State entropy of an activation: mean over its channels of the pooled entropy, or the estimate that was asked for."""
        return self.estimates[path].value if path in self.estimates else float(self.states[path].entropy.mean())


def collect(
    module: GraphModule,
    batches: Callable[[], Iterable[Inputs]],
    paths: Sequence[str],
    *,
    images: int,
    device: torch.device,
    task: str,
    sampling: Sampling | None = None,
    states: bool = True,
    estimator: str = "pooled",
    progress: Callable[[float], None] = lambda share: None,
) -> Statistics:
    """Run the pass.

    Args:
        module: dense model; not changed.
        batches: starts a pass over the images.
        paths: consumers whose moments and Fisher matrices are wanted.
        images: number of images that a pass will bring.
        device: where it runs.
        task: of the data; "classification" and "multilabel" say what the output (n, k) decides.
        sampling: by default that of `Sampling`.
        states: whether to count activation states.
        estimator: of the state entropy, "pooled", "easier" or "egp"; the last two depend on the size of the batches.
        progress: told the share done.

    Raises:
        EmptyData: there are no images.
    """
    sampling = sampling or Sampling()
    known = layers(module)
    found = Statistics()
    # An empty part: states alone are asked for, which takes one pass as well.
    parts = _parts([known[p] for p in paths], sampling.memory) or [[]]
    for number, part in enumerate(parts):
        # States are counted in the first pass only, or they would be counted several times.
        run = _Pass(module, part, found, sampling, images, device, task, estimator if states and number == 0 else None)
        with run.hooked():
            for turn, inputs in enumerate(batches()):
                run.batch(inputs, differentiate=bool(part) and turn % sampling.fisher_every == 0)
                progress((number + min(run.seen / max(images, 1), 1.0)) / len(parts))
        if not run.seen:
            raise EmptyData("The statistics need at least one image and there is none. Give training images with --data.")
        for one in part:
            # Summed over images above; the mean is what the loss of one sample means.
            found.fisher[one.path] /= run.differentiated
        found.images = run.seen
    found.states = {path: counts.cpu() for path, counts in found.states.items()}
    return found


def _parts(wanted: Sequence[Layer], memory: float) -> list[list[Layer]]:
    """Consumers by pass."""
    parts: list[list[Layer]] = []
    room = 0.0
    for one in wanted:
        # 8 bytes of float64 for each entry of the Gram matrix.
        need = 8.0 * one.groups * one.inputs**2
        if not parts or need > room:
            parts.append([])
            room = memory
        parts[-1].append(one)
        room -= need
    return parts


class _Pass:
    """A model with hooks that fill `Statistics`."""

    def __init__(
        self,
        module: GraphModule,
        wanted: Sequence[Layer],
        found: Statistics,
        sampling: Sampling,
        images: int,
        device: torch.device,
        task: str,
        estimator: str | None,
    ):
        self.module = observed(module, device)
        self.wanted, self.found, self.sampling, self.images = wanted, found, sampling, images
        self.device, self.task, self.estimator = device, task, estimator
        self.generator = torch.Generator().manual_seed(sampling.seed)
        self.seen = self.differentiated = 0
        self.outputs: list[tuple[str, Tensor]] = []

    @contextmanager
    def hooked(self) -> Iterator[None]:
        handles = []
        for one in self.wanted:
            self.found.moments[one.path] = Moments(one.groups)
            handles.append(self.module.get_submodule(one.path).register_forward_hook(self._consumer(one)))
        if self.estimator is not None:
            handles += watch(self.module, self.found.states, self.found.estimates, self.estimator)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def batch(self, inputs: Inputs, differentiate: bool) -> None:
        inputs = tuple(x.to(self.device) for x in inputs)
        self.outputs = []
        self.differentiating = differentiate
        with torch.set_grad_enabled(differentiate):
            result = self.module(*inputs)
            if differentiate:
                self._fisher(first_output(result), len(inputs[0]))
        self.seen += len(inputs[0])

    def _consumer(self, one: Layer) -> Callable[..., Tensor | None]:
        def hook(part: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            # Without gradients: moments must not become a part of the graph.
            with torch.no_grad():
                at = one.places(output, self._rows(one, output), self.generator)
                self.found.moments[one.path].add(one.rows(args[0], at))
            if self.differentiating:
                # The graph begins at the first consumer: nothing before it is differentiated.
                self.outputs.append((one.path, output if output.requires_grad else output.requires_grad_(True)))

        return hook

    def _rows(self, one: Layer, output: Tensor) -> int:
        """Rows of this batch: a share of the layer's own arithmetic, or what a usable Gram matrix needs."""
        positions = output.numel() // one.outputs
        gram = 0.5 * one.inputs  # symmetric
        cheap = self.sampling.share * positions * (one.outputs / one.groups) / gram
        samples = output.shape[0] / max(self.images, 1)
        least, most = (rows * one.inputs * samples for rows in (self.sampling.floor, self.sampling.ceiling))
        return max(1, round(min(max(cheap, least), most)))

    def _fisher(self, result: Tensor, samples: int) -> None:
        loss = drawn_loss(result, self.task, self.generator)
        reached = [(path, y) for path, y in self.outputs]
        # allow_unused: a consumer may not reach the first output.
        gradients = torch.autograd.grad(loss, [y for _, y in reached], allow_unused=True)
        self.outputs = []
        for (path, y), g in zip(reached, gradients, strict=True):
            # One lookup per output: a layer that is called twice adds up.
            one = next(w for w in self.wanted if w.path == path)
            outer = outer_products(torch.zeros_like(y) if g is None else g, -1 if one.linear else 1)
            self.found.fisher[path] = self.found.fisher[path] + outer if path in self.found.fisher else outer
        self.differentiated += samples


def drawn_loss(result: Tensor, task: str, generator: torch.Generator) -> Tensor:
    """A loss whose gradient's second moment is the Fisher matrix: labels drawn from the model, or a Gaussian direction."""
    labels = drawn(result, task, generator)
    if labels is not None:
        # Sum, so that each sample's gradient is its own, whatever the batch size.
        return surprise(result, labels, task, "sum")
    return (result * torch.randn(result.shape, generator=generator).to(result.device)).sum()


def outer_products(g: Tensor, channel_dim: int) -> Tensor:
    """Sum of g g^T over samples and positions, (c, c), float64 on the CPU."""
    rows = g.movedim(channel_dim, -1).flatten(0, -2)
    return (rows.T @ rows).double().cpu()
