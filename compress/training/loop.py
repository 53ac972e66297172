"""The training loop.

    learning rate at step s of S, W of them warm-up:   lr (s + 1) / W              while s < W
                                                       lr (1 + cos(pi (s - W) / (S - W))) / 2   afterwards

After each epoch the model is measured on the held-out data; the best of these states, the one before training included, is
what comes back. The test data is never read. Order, augmentation, dropout and fresh layers follow the seed: on one machine and
one number of threads a training repeats exactly.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.data import Batch, Data
from compress.errors import BadInput
from compress.measure import quality
from compress.recipe import Recipe
from compress.training.preparing import Loop, Progress, laid, prepared, seeded, trainable

LOOK = 20  # steps between two looks at the loss on an accelerator, where each look waits for it
MEASURE_BATCH = 256


@dataclass(frozen=True)
class Epoch:
    """State after `number` epochs: mean training loss (NaN before the first), quality on held-out data, seconds so far."""

    number: float
    loss: float
    quality: float
    seconds: float


@dataclass(frozen=True)
class Training:
    """What came out.

    Attributes:
        module: trained copy of the best epoch, on the CPU, in eval mode.
        history: the first entry is the state before training.
        best: index of the chosen entry in `history`.
        notes: one sentence each.
    """

    module: nn.Module
    history: tuple[Epoch, ...]
    best: int
    metric: str
    notes: tuple[str, ...] = ()


def train(
    module: nn.Module,
    data: Data,
    recipe: Recipe,
    device: torch.device | str = "cpu",
    *,
    teacher: nn.Module | None = None,
    progress: Progress | None = None,
) -> Training:
    """Train a copy of a model; the model itself, the teacher and the random state of the caller stay as they are.

    Args:
        module: any module, a traced one included; parameters with `requires_grad=False` stay fixed unless all are.
        data: batches come from `data.train`, choices from `data.held_out`.
        recipe: epochs (fractions count in steps), optimizer, lr, weight_decay, batch_size, warmup, loss, distill, temperature,
            clip, ema, patience, metric, seed.
        device: where it is computed; half precision on CUDA only.
        teacher: the dense model, for distillation.
        progress: called after steps with the share done and a text with epoch, loss and time left.

    Raises:
        BadInput: nothing to learn from, labels that the outputs cannot express, or a loss that is not finite.
    """
    device = torch.device(device)
    if recipe.epochs == 0:
        return Training(copy.deepcopy(module).eval(), (), 0, recipe.metric, ("No training: 0 epochs.",))
    metric, _ = quality.choose(recipe.metric, data.spec.task, data.spec.labelled)
    with seeded(recipe.seed, device):
        loop, notes = prepared(module, data, recipe, device, teacher, progress)
        history, best, state = _run(loop, metric)
    result = copy.deepcopy(module).cpu()  # not the student, whose weights lie in another memory layout
    result.load_state_dict(state)
    chosen = history[best]
    notes += (
        f"Best epoch {chosen.number:g} of {history[-1].number:g} by held-out {metric.name} "
        f"({chosen.quality:.4f}, before training {history[0].quality:.4f}).",
    )
    return Training(result.eval(), tuple(history), best, metric.name, notes)


def _run(loop: Loop, metric: quality.Metric) -> tuple[list[Epoch], int, dict[str, Tensor]]:
    """All epochs: (history, index of the best entry, state of the best entry)."""
    measured = loop.average if loop.average is not None else loop.student
    start = time.perf_counter()

    def look() -> quality.Quality:
        batches = (laid(b, loop) for b in loop.data.held_out.batches(MEASURE_BATCH, device=loop.device))
        return quality.evaluate(measured, batches, metric, loop.device, loop.teacher)

    top = look()
    history, best, state = [Epoch(0.0, math.nan, top.value, 0.0)], 0, _snapshot(measured)
    done = 0
    while done < loop.steps:
        count = min(loop.per_epoch, loop.steps - done)
        mean_loss = _epoch(loop, done, count)
        done += count
        now = look()
        history.append(Epoch(done / loop.per_epoch, mean_loss, now.value, time.perf_counter() - start))
        if quality.better(now, top):
            best, top, state = len(history) - 1, now, _snapshot(measured)
        if loop.recipe.patience and len(history) - 1 - best >= loop.recipe.patience:
            break
    return history, best, state


def _epoch(loop: Loop, done: int, count: int) -> float:
    """`count` steps, the first of which is number `done`: the mean loss."""
    recipe, total = loop.recipe, torch.zeros((), device=loop.device)
    loop.student.train()
    batches = loop.data.train.batches(
        recipe.batch_size,
        shuffle=True,
        seed=recipe.seed,
        epoch=done // loop.per_epoch,
        augment=True,
        drop_last=True,
        device=loop.device,
    )
    taken = 0
    for batch in batches:
        step = done + taken
        if taken == count:
            break
        for group in loop.optimizer.param_groups:
            group["lr"] = recipe.lr * _rate(step, loop.steps, math.ceil(recipe.warmup * loop.steps))
        total += _step(loop, laid(batch, loop))
        taken += 1
        if loop.average is not None:
            _blend(loop.average, loop.student, min(recipe.ema, (1 + step) / (10 + step)))
        if loop.device.type == "cpu" or taken % LOOK == 0 or taken == count:
            mean = float(total) / taken
            if not math.isfinite(mean):
                raise BadInput(
                    f"The training loss is {mean} at step {step + 1} of {loop.steps}. Lower --lr (now {recipe.lr:g}), or set "
                    f"--clip (now {recipe.clip:g}); the weights before training are untouched."
                )
            loop.report(step + 1, mean)
    return float(total) / max(taken, 1)


def _step(loop: Loop, batch: Batch) -> Tensor:
    """One step of the optimizer: the loss, detached."""
    with torch.autocast(loop.device.type, dtype=loop.half, enabled=loop.half is not None):
        dense = None
        if loop.teacher is not None:
            with torch.no_grad():
                dense = quality.first_output(loop.teacher(*batch.inputs))
        output = loop.student(*batch.inputs)
    loss = loop.loss(output, batch.target, dense)
    loop.optimizer.zero_grad(set_to_none=True)
    loop.scaler.scale(loss).backward()
    if loop.recipe.clip:
        loop.scaler.unscale_(loop.optimizer)
        nn.utils.clip_grad_norm_(trainable(loop.student), loop.recipe.clip)
    loop.scaler.step(loop.optimizer)
    loop.scaler.update()
    return loss.detach()


def _rate(step: int, steps: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.no_grad()
def _blend(average: nn.Module, student: nn.Module, decay: float) -> None:
    for mean, now in zip(average.state_dict().values(), student.state_dict().values(), strict=True):
        mean.lerp_(now, 1 - decay) if mean.is_floating_point() else mean.copy_(now)


def _snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
