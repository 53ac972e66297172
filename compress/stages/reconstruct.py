"""Block reconstruction: a few layers at a time learn to give what the dense model gives. No labels, no end-to-end training.

For each run of blocks, with the smaller model's own input x' and the dense model's input x of the same images,

    e = small blocks(x') - dense blocks(x)        minimize  mean over samples and positions of  e^T G e

by Adam with a cosine schedule. G is the Fisher matrix of the dense model at the end of the run: it knows which directions of
the error matter to the output. Runs overlap by one block, so that a block is first fitted to what the next one can still
correct. At the end the last layer is refitted to the dense output, and norms are made consistent with the new weights.

Source: Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", ICLR 2021, for blocks and a
Fisher weighting (diagonal there).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from compress.artifact import Artifact
from compress.data.calibration import ROWS
from compress.data.room import Held
from compress.graph.liveness import value_bytes
from compress.measure.quality import first_output
from compress.ranks import Ranks
from compress.recipe import Recipe
from compress.refit import refit as calibration
from compress.refit.blocks import Block, blocks, spans
from compress.refit.inputs import Images
from compress.refit.tape import run
from compress.refit.walk import refit
from compress.stage import Context, Traits
from compress.statistics.drawn_labels import draw, loss_of, outer_products
from compress.statistics.layers import layers
from compress.statistics.portions import cut, stream
from compress.training import distillation
from compress.user.wording import many

_BATCH = 64
_RATE = 2e-3
_FLOOR = 1e-2  # of the mean of G's diagonal, in every direction: no error is free
_FISHER_IMAGES = 2000


@dataclass(frozen=True)
class Reconstruct:
    """The stage. `width`: blocks that learn together."""

    width: int = 2
    rate: float = _RATE
    name: str = "reconstruct"
    traits: Traits = Traits(repeats=True)

    def needed(self, recipe: Recipe) -> bool:
        return recipe.reconstruct > 0

    def check(self, artifact: Artifact, context: Context) -> None:
        """Any model can be tried; one without blocks is left as it is, and the report says so."""

    def __call__(self, artifact: Artifact, context: Context) -> Artifact:
        return context.together(_reconstructed, artifact, self)

    def found(self, artifact: Artifact, context: Context) -> Artifact:
        """What every process of the run does, with its share of the images."""
        pair = calibration.both(artifact, context, in_place=True)
        found = blocks(pair.dense, pair.kept)
        if not found:
            return artifact.noting("Nothing was reconstructed: the model has no point through which everything flows.")
        before = _distance(pair, context)
        fisher = _fisher(pair.dense, found, pair.batches, context)
        self._learn(pair, found, fisher, context)
        last = list(layers(pair.dense))[-1]
        if last not in {str(n.target) for b in found for n in pair.dense.graph.nodes if n.name in b.nodes}:
            refit(pair.dense, pair.small, pair.kept, pair.batches, device=context.device, seed=context.recipe.seed, only=[last])
        after = _distance(pair, context)
        if not after < before:
            return artifact.noting(
                "Block reconstruction brought the model no closer to the dense one; the weights were put back."
            )
        module = calibration.written_back(artifact, pair.small, pair.batches, context.ranks)
        gain = f"{1 - after / before:.0%}"
        note = f"Block reconstruction lowered the distance to the dense model by {gain} on its {many(pair.samples, 'image')}."
        return replace(artifact, module=module).noting(note, *pair.notes)

    def _learn(self, pair: calibration.Both, found: Sequence[Block], fisher: dict[str, Tensor], context: Context) -> None:
        """Fit all runs in order."""
        generator = torch.Generator().manual_seed(context.recipe.seed)
        dense = small = _inputs(pair)
        runs = spans(found, self.width)
        for number, members in enumerate(runs):
            target = _forward(pair.dense, members, dense, members[-1].channels)
            root = _root(fisher[members[-1].exit], members[-1])
            problem = _Problem(pair.small, members, small, target, root, context.ranks)

            def tell(share: float, number: int = number, members: Sequence[Block] = members) -> None:
                context.progress("reconstruct", (number + share) / len(runs), members[0].exit)

            problem.solve(context.recipe.reconstruct, self.rate, generator, tell)
            del problem, target
            # Only what flows between two blocks is held, each time for one block further.
            dense = {members[0].exit: _forward(pair.dense, members[:1], dense)}
            small = {members[0].exit: _forward(pair.small, members[:1], small)}


def _reconstructed(artifact: Artifact, stage: Reconstruct, context: Context) -> Artifact:
    return stage.found(artifact, context)


@dataclass
class _Problem:
    """One run of blocks: `inputs` and `target` hold the images of this process, `root` is L with L L^T = G."""

    module: GraphModule
    members: Sequence[Block]
    inputs: dict[str, Held]
    target: Held
    root: Tensor
    ranks: Ranks

    def __post_init__(self) -> None:
        counts = self.ranks.gathered(self.target.samples)
        self.samples, self.first = sum(counts), sum(counts[: self.ranks.number])

    def solve(self, steps: int, rate: float, generator: torch.Generator, tell: Callable[[float], None]) -> None:
        """Learn; weights that end up worse on all images are put back."""
        parameters = self._parameters()
        start = [p.detach().clone() for p in parameters]
        before = self._error()
        optimizer = torch.optim.Adam(parameters, lr=rate)
        samples, most = self.samples, self._at_once()
        order, at = torch.randperm(samples, generator=generator), 0
        for p in parameters:
            p.requires_grad_(True)
            p.grad = torch.zeros_like(p)
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = rate * 0.5 * (1 + math.cos(math.pi * step / steps))
            if at + _BATCH > samples:
                order, at = torch.randperm(samples, generator=generator), 0
            chosen = order[at : at + _BATCH]
            at += _BATCH
            # A gradient of zeros where none of them are this process's.
            optimizer.zero_grad(set_to_none=False)
            mine = chosen[(chosen >= self.first) & (chosen < self.first + self.target.samples)] - self.first
            # In parts where a backward pass through all of them does not fit: their gradients add up.
            for part in mine.split(most) if len(mine) else ():
                loss = self._loss({name: value.rows(part) for name, value in self.inputs.items()}, self.target.rows(part))
                (loss * (self.ranks.count * len(part) / len(chosen))).backward()
            self.ranks.mean([cast(Tensor, p.grad) for p in parameters])
            optimizer.step()
            if step % 20 == 0:
                tell(step / steps)
        for p in parameters:
            p.requires_grad_(False)
            p.grad = None
        if not self._error() < before:
            for p, value in zip(parameters, start, strict=True):
                p.copy_(value)

    def _parameters(self) -> list[nn.Parameter]:
        names = {name for member in self.members for name in member.nodes}
        parts = [
            self.module.get_submodule(str(n.target)) for n in self.module.graph.nodes if n.op == "call_module" and n.name in names
        ]
        return list(dict.fromkeys(p for part in parts for p in part.parameters()))

    def _loss(self, inputs: dict[str, Tensor], target: Tensor) -> Tensor:
        e = run(self.module, _nodes(self.module, self.members), inputs)[self.members[-1].exit] - target
        e = e.movedim(self.members[-1].channel_dim, -1)
        return (e @ self.root).square().mean()

    def _at_once(self) -> int:
        """Images of a step that go forward and back together."""
        # 4: values that are kept, their gradients, and what the layers need for a moment.
        return self.target.room.images(4 * sum(map(value_bytes, _nodes(self.module, self.members))), share=1 / 4)

    def _error(self) -> float:
        total = torch.zeros((), dtype=torch.float64)
        with torch.no_grad():
            for number in range(len(self.target)):
                target = self.target[number]
                batch = {name: value[number] for name, value in self.inputs.items()}
                total += float(self._loss(batch, target)) * len(target)
        return float(self.ranks.summed(total)) / self.samples


def _nodes(module: GraphModule, members: Sequence[Block]) -> list[Node]:
    names = {name for member in members for name in member.nodes}
    return [n for n in module.graph.nodes if n.name in names]


def _inputs(pair: calibration.Both) -> dict[str, Held]:
    """What the models take, by node."""
    names = [n.name for n in pair.dense.graph.nodes if n.op == "placeholder"]
    found = {name: Held(pair.batches.room) for name in names}
    for inputs in pair.batches:
        for name, value in zip(names, inputs, strict=True):
            found[name].append(value)
    return found


def _forward(module: GraphModule, members: Sequence[Block], inputs: dict[str, Held], channels: Tensor | None = None) -> Held:
    """The exit's value for all images, of some channels."""
    nodes, exit_of = _nodes(module, members), members[-1]
    room = next(iter(inputs.values())).room
    found = Held(room)
    with torch.no_grad():
        for number in range(len(next(iter(inputs.values())))):
            value = run(module, nodes, {name: held[number] for name, held in inputs.items()})[exit_of.exit]
            found.append(value if channels is None else value.index_select(exit_of.channel_dim, channels.to(value.device)))
    return found


def _root(fisher: Tensor, block: Block) -> Tensor:
    """L of the exit's Fisher matrix, restricted to the channels left, scaled to a mean diagonal of 1."""
    if block.channels is not None:
        fisher = fisher[block.channels][:, block.channels]
    scale = fisher.diagonal().mean().clamp_min(1e-30)
    values, vectors = torch.linalg.eigh(fisher / scale + _FLOOR * torch.eye(len(fisher), dtype=fisher.dtype))
    return (vectors * values.clamp_min(0).sqrt()).float()


def _distance(pair: calibration.Both, context: Context) -> float:
    """Mean divergence of the outputs from the dense model's (class scores), or their mean squared difference (anything else)."""
    total, task = torch.zeros((), dtype=torch.float64), context.data.spec.task
    with torch.no_grad():
        for inputs in pair.batches:
            dense, small = (first_output(m(*inputs)).double() for m in (pair.dense, pair.small))
            total += float(distillation(small, dense, task, 1.0)) * len(dense)
    return float(context.ranks.summed(total)) / pair.samples


class _Watch(Interpreter):
    """Runs a model and keeps some values, differentiable."""

    def __init__(self, module: GraphModule, names: Sequence[str]):
        super().__init__(module)
        self.names, self.kept = set(names), dict[str, Tensor]()

    def run_node(self, n: Node) -> object:
        value = super().run_node(n)
        if n.name in self.names:
            value = value if value.requires_grad else value.requires_grad_(True)
            self.kept[n.name] = value
        return value


def _fisher(module: GraphModule, found_blocks: Sequence[Block], batches: Images, context: Context) -> dict[str, Tensor]:
    """G at some nodes of the dense model: sum over positions, mean over images, float64 on the CPU."""
    names = [b.exit for b in found_blocks]
    dims = {b.exit: b.channel_dim for b in found_blocks}
    shapes = {n.name: n.meta["shape"] for n in module.graph.nodes if n.name in dims}
    found = {name: torch.zeros(2 * [shapes[name][dim]], dtype=torch.float64) for name, dim in dims.items()}
    seen, task = torch.zeros((), dtype=torch.float64), context.data.spec.task
    most = batches.room.images(2 * sum(map(value_bytes, module.graph.nodes)), share=1 / 4)
    for numbers in batches.batches():
        batch = batches.parts[numbers[0]].batch
        if batch * ROWS >= _FISHER_IMAGES:
            break
        # Of the batch, whoever draws: the same labels in a run of any number of processes.
        generator = stream(context.recipe.seed, batch)
        pieces = [piece for number in numbers for piece in _pieces(batches[number], most)]
        whole = len(pieces) == 1
        # What is drawn for one image depends on the outputs of the whole batch: they come first where it goes in pieces.
        about = None if whole else draw(torch.cat([_output(module, piece) for piece in pieces]), task, generator)
        start = 0
        for piece in pieces:
            watch = _Watch(module, names)
            output = first_output(watch.run(*piece))
            size = len(piece[0])
            mine = draw(output, task, generator) if about is None else about[start : start + size]
            start += size
            kept = [watch.kept[name] for name in names]
            gradients = torch.autograd.grad(loss_of(output, mine, task), kept, allow_unused=True)
            for name, value, g in zip(names, kept, gradients, strict=True):
                found[name] += outer_products(torch.zeros_like(value) if g is None else g, dims[name])
        seen += start
    counted = context.ranks.summed(seen)
    return {name: context.ranks.summed(total) / counted for name, total in found.items()}


def _pieces(inputs: tuple[Tensor, ...], most: int) -> list[tuple[Tensor, ...]]:
    return [part.of(inputs) for part in cut(len(inputs[0]), most)]


def _output(module: GraphModule, inputs: tuple[Tensor, ...]) -> Tensor:
    with torch.no_grad():
        return first_output(module(*inputs))
