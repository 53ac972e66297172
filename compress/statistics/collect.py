"""One streaming pass over the dense model: on-counts of activations, input moments and output Fisher matrices of consumers.

    forward      every batch;  input rows at sampled positions -> moments;  signs at activations -> states
    backward     one batch in `fisher_every`;  g = d loss / d (layer output), G = mean over images of sum over positions of g g^T

The labels of the loss are drawn from the model's own probabilities, so that G is the Fisher matrix and needs no data labels;
models that do not classify take a unit Gaussian direction in output space instead (G = J^T J). A consumer's targets are linear in
its inputs, so no second sum is needed for them. Memory: the Gram matrices of as many consumers as fit, at least one, and more
passes otherwise; batches go through the model in as many parts as they need (`portions`), which changes nothing of what is found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.data.room import Held, Room
from compress.entropy.estimators import BatchMean
from compress.entropy.moments import Moments
from compress.entropy.state import States
from compress.errors import EmptyData
from compress.graph.liveness import alive_bytes, value_bytes
from compress.measure.quality import first_output
from compress.ranks import ALONE, Ranks, Share
from compress.statistics.activation_states import observed, watch
from compress.statistics.drawn_labels import draw, loss_of, outer_products
from compress.statistics.layers import Layer, layers
from compress.statistics.portions import Drawn, Inputs, Part, cut, stream
from compress.user import memory


@dataclass(frozen=True)
class Sampling:
    """How much is looked at.

    Attributes:
        share: arithmetic of a layer's moments, relative to the layer's own forward pass.
        floor: rows per input column that a layer gets at least, where there are as many.
        ceiling: rows per input column that a layer gets at most.
        fisher_every: one batch in so many is differentiated.
        memory: bytes of Gram matrices held at once, where no room is given.
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
    room: Room | None = None,
    states: bool = True,
    estimator: str = "pooled",
    progress: Callable[[float], None] = lambda share: None,
    ranks: Ranks = ALONE,
    share: Share | None = None,
) -> Statistics:
    """Run the pass.

    Args:
        module: dense model; not changed.
        batches: starts a pass over the images, or over this process's share of them.
        paths: consumers whose moments and Fisher matrices are wanted.
        images: number of images that a pass will bring.
        device: where it runs.
        task: of the data; "classification" and "multilabel" say what the output (n, k) decides.
        sampling: by default that of `Sampling`.
        room: for Gram matrices and the values of a batch; by default batches go through whole.
        states: whether to count activation states.
        estimator: of the state entropy, "pooled", "easier" or "egp"; the last two depend on the size of the batches.
        progress: told the share done.
        ranks: the processes that share the pass.
        share: which batches come; by default all, in one lane.

    Raises:
        EmptyData: there are no images.
    """
    sampling, first = sampling or Sampling(), share.numbers.start if share else 0
    known = layers(module)
    found = Statistics()
    most = sampling.memory if room is None else room.limit / 2
    # An empty part: states alone are asked for, which takes one pass as well.
    parts = _parts([(known[p], gram_bytes(module, known[p], images)) for p in paths], most) or [[]]
    sizes = _Sizes.of(module, room, estimator if states else "pooled")
    for number, part in enumerate(parts):
        # States are counted in the first pass only, or they would be counted several times.
        run = _Pass(module, part, found, sampling, images, device, task, estimator if states and number == 0 else None, sizes)
        with run.hooked():
            for turn, inputs in enumerate(batches(), first):
                run.batch(inputs, turn, differentiate=bool(part) and turn % sampling.fisher_every == 0)
                if share is not None and turn in share.ends:
                    run.settle()
                if sizes.forward < len(inputs[0]):
                    memory.trim()
                progress((number + min(run.seen * ranks.count / max(images, 1), 1.0)) / len(parts))
        run.join(ranks)
        if not run.seen:
            raise EmptyData("The statistics need at least one image and there is none. Give training images with --data.")
        for one in part:
            # Summed over images above; the mean is what the loss of one sample means.
            found.fisher[one.path] /= run.differentiated
            # Of several passes only the present one's sums stay in memory.
            if room is not None and len(parts) > 1:
                found.moments[one.path].put_away(_filed(room))
        found.images = run.seen
    found.states = {path: counts.cpu() for path, counts in found.states.items()}
    return found


def _filed(room: Room) -> Callable[[Tensor], Callable[[], Tensor]]:
    """What puts a tensor into a file, and gives the way to it: the selection needs the room's memory for one group's matrices."""
    no_memory = replace(room, limit=0.0)

    def put(value: Tensor) -> Callable[[], Tensor]:
        held = Held(no_memory)
        held.append(value)
        return lambda: held[0]

    return put


def _parts(wanted: Sequence[tuple[Layer, float]], memory: float) -> list[list[Layer]]:
    """Consumers by pass, from the bytes that each needs."""
    parts: list[list[Layer]] = []
    room = 0.0
    for one, need in wanted:
        if not parts or need > room:
            parts.append([])
            room = memory
        parts[-1].append(one)
        room -= need
    return parts


def gram_bytes(module: GraphModule, one: Layer, images: int) -> float:
    """Bytes of a consumer's Gram matrix, or of the rows themselves where they are fewer than its columns."""
    rows, columns = _rows(module, one, images), one.groups * one.inputs
    # 8 bytes of float64 for each entry of the matrix.
    return min(8.0 * columns * one.inputs, 4.0 * rows * columns if 0 < rows < one.inputs else float("inf"))


def fit_bytes(module: GraphModule, one: Layer, images: int) -> float:
    """Bytes that fitting a layer takes: its sums, the moments made of them, and the matrix that is solved with its factor; or
    its rows, their products, and the factor of these.
    """
    rows, sums = _rows(module, one, images), 4 * 8.0 * one.groups * one.inputs**2
    return min(sums, gram_bytes(module, one, images) + 2 * 8.0 * rows**2) if 0 < rows < one.inputs else sums


def _rows(module: GraphModule, one: Layer, images: int) -> int:
    """Rows that a layer sees of so many images."""
    shapes = [n.meta.get("shape") for n in module.graph.nodes if n.name in one.nodes]
    return images * sum(math.prod(shape) // one.outputs for shape in shapes if isinstance(shape, tuple | list))


@dataclass(frozen=True)
class _Sizes:
    """How many images go through the model at once: forward alone, and with what a backward pass needs."""

    forward: int = 1 << 30
    backward: int = 1 << 30

    @staticmethod
    def of(module: GraphModule, room: Room | None, estimator: str) -> _Sizes:
        # Published estimates of the entropy are means over batches as they come.
        if room is None or estimator != "pooled":
            return _Sizes()
        nodes = list(module.graph.nodes)
        return _Sizes(
            room.images(2 * alive_bytes(module.graph, nodes)), room.images(2 * sum(map(value_bytes, nodes)), share=1 / 4)
        )


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
        sizes: _Sizes,
    ):
        self.module = observed(module, device)
        self.wanted, self.found, self.sampling, self.images = wanted, found, sampling, images
        self.device, self.task, self.estimator, self.sizes = device, task, estimator, sizes
        self.drawn = Drawn(sampling.seed)
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

    def batch(self, inputs: Inputs, number: int, differentiate: bool) -> None:
        """Look at a batch, part by part where it does not fit as a whole."""
        whole, labels = len(inputs[0]), stream(self.sampling.seed, "labels", number)
        self.seen += whole
        if differentiate and whole <= min(self.sizes.forward, self.sizes.backward):
            result = self._through(inputs, Part(0, whole, whole, number), looking=True, differentiating=True)
            self._fisher(result, draw(result, self.task, labels))
            self.differentiated += whole
            return
        results = [self._through(part.of(inputs), part, looking=True) for part in cut(whole, self.sizes.forward, number)]
        if differentiate:
            # Once more: what is drawn for one image depends on the outputs of the whole batch.
            drawn = draw(torch.cat(results), self.task, labels)
            for part in cut(whole, self.sizes.backward, number):
                result = self._through(part.of(inputs), part, differentiating=True)
                self._fisher(result, part.of((drawn,))[0])
            self.differentiated += whole

    def settle(self) -> None:
        """The end of a lane: products of rows do not go beyond it, but where rows are so few that they stay rows."""
        for one in self.wanted:
            if not self._few(one):
                self.found.moments[one.path].settle()

    def _few(self, one: Layer) -> bool:
        """Whether all the rows of a pass are expected to be fewer than the columns."""
        shapes = [n.meta.get("shape") for n in self.module.graph.nodes if n.name in one.nodes]
        positions = sum(math.prod(shape) // one.outputs for shape in shapes if isinstance(shape, tuple | list))
        return self.images * min(positions, self._wanted(one, positions, 1)) < one.inputs

    def join(self, ranks: Ranks) -> None:
        """What all processes have found, in each of them."""
        if ranks.count == 1:
            return
        for one in self.wanted:
            self.found.moments[one.path].join(ranks, self.device)
            # A process may have differentiated none of its batches, or had none at all.
            mine = self.found.fisher.get(one.path, torch.zeros(one.outputs, one.outputs, dtype=torch.float64))
            self.found.fisher[one.path] = ranks.summed(mine)
        if self.estimator is not None:
            self.found.states = _together(ranks, {path: counts.cpu() for path, counts in self.found.states.items()})
            self.found.estimates = _together(ranks, self.found.estimates)
        self.seen, self.differentiated = map(sum, zip(*ranks.gathered((self.seen, self.differentiated)), strict=True))

    def _through(self, inputs: Inputs, part: Part, looking: bool = False, differentiating: bool = False) -> Tensor:
        """The first output; the hooks take moments (looking) and keep outputs (differentiating)."""
        self.outputs, self.part, self.calls = [], part, dict[str, int]()
        self.looking, self.differentiating = looking, differentiating
        with torch.set_grad_enabled(differentiating):
            return first_output(self.module(*(x.to(self.device) for x in inputs)))

    def _consumer(self, one: Layer) -> Callable[..., Tensor | None]:
        def hook(part: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if self.looking:
                # Without gradients: moments must not become a part of the graph.
                with torch.no_grad():
                    call = self.calls[one.path] = self.calls.get(one.path, 0) + 1
                    rows = self._rows(one, output, self.part.whole / self.part.images)
                    at = self.drawn.places(one, (one.path, call), output, rows, self.part)
                    self.found.moments[one.path].add(one.rows(args[0], at))
            if self.differentiating:
                # The graph begins at the first consumer: nothing before it is differentiated.
                self.outputs.append((one.path, output if output.requires_grad else output.requires_grad_(True)))

        return hook

    def _rows(self, one: Layer, output: Tensor, parts: float) -> int:
        """Rows of a batch of so many parts: a share of the layer's own arithmetic, or what a usable Gram matrix needs."""
        return max(1, round(self._wanted(one, output.numel() // one.outputs * parts, output.shape[0] * parts)))

    def _wanted(self, one: Layer, positions: float, images: float) -> float:
        """Rows of so many positions of so many images."""
        gram = 0.5 * one.inputs  # symmetric
        cheap = self.sampling.share * positions * (one.outputs / one.groups) / gram
        share = images / max(self.images, 1)
        least, most = (rows * one.inputs * share for rows in (self.sampling.floor, self.sampling.ceiling))
        return min(max(cheap, least), most)

    def _fisher(self, result: Tensor, drawn: Tensor) -> None:
        loss = loss_of(result, drawn, self.task)
        reached = [(path, y) for path, y in self.outputs]
        # allow_unused: a consumer may not reach the first output.
        gradients = torch.autograd.grad(loss, [y for _, y in reached], allow_unused=True)
        self.outputs = []
        for (path, y), g in zip(reached, gradients, strict=True):
            # One lookup per output: a layer that is called twice adds up.
            one = next(w for w in self.wanted if w.path == path)
            outer = outer_products(torch.zeros_like(y) if g is None else g, -1 if one.linear else 1)
            # In place: of a wide layer these are hundreds of megabytes.
            self.found.fisher[path] = self.found.fisher[path].add_(outer) if path in self.found.fisher else outer


def _together(ranks: Ranks, found: dict[str, Any]) -> dict[str, Any]:
    """Counts by path, added over all processes."""
    total: dict[str, Any] = {}
    for part in ranks.gathered(found):
        for path, counts in part.items():
            total[path] = total[path] + counts if path in total else counts
    return total
