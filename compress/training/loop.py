"""The training loop.

    learning rate at step s of S, W of them warm-up:   lr (s + 1) / W              while s < W
                                                       lr (1 + cos(pi (s - W) / (S - W))) / 2   afterwards

After each epoch the model is measured on the held-out data; the test data is never read. What comes back is the *last* epoch
whose held-out quality q is within one standard error, sqrt(q (1 - q) / n), of the best one: late epochs have the small learning
rates, and smaller differences than that are noise.

A held-out part cut from the training data was, as a rule, training data of the dense model too, so the state before training
does better on it than on new images. There it comes back if training has plainly failed (`FAILED`), or has harmed by what such
images cannot fool (`harm`); with a validation part of the user's own, or without labels, no epoch that is worse than it is taken.

Order, augmentation, dropout and fresh layers follow the seed: on one machine and one number of threads a training repeats
exactly.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compress.curves import TrainedEpoch, TrainingCurve
from compress.data import Batch, Data
from compress.errors import BadInput
from compress.measure import quality
from compress.progress import Progress
from compress.ranks import ALONE, Ranks
from compress.recipe import Recipe
from compress.training import harm
from compress.training.gradual_linearize import advance
from compress.training.setup import Loop, Observer, frozen_norms, laid, prepared, seeded, trainable
from compress.training.sharded import sharded, whole

LOOK = 20  # steps between two looks at the loss on an accelerator, where each look waits for it
FAILED = 0.8  # training has failed if less than that share of the quality is left (or an error has become 1 / 0.2 times as large)


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
        best: index of the chosen entry in `history`; 0 where training was taken back.
        notes: one sentence each.
    """

    module: nn.Module
    history: tuple[Epoch, ...]
    best: int
    metric: str
    notes: tuple[str, ...] = ()

    def curves(self, stage: str) -> tuple[TrainingCurve, ...]:
        """Its course, for the report; none where nothing was trained."""
        epochs = tuple(
            TrainedEpoch(one.number, one.loss if math.isfinite(one.loss) else None, one.quality, round(one.seconds, 3))
            for one in self.history
            if math.isfinite(one.quality)
        )
        # Indices hold only where no epoch was left out.
        return (TrainingCurve(stage, self.metric, epochs, self.best),) if epochs and len(epochs) == len(self.history) else ()


def train(
    module: nn.Module,
    data: Data,
    recipe: Recipe,
    device: torch.device | str = "cpu",
    *,
    teacher: nn.Module | None = None,
    progress: Progress | None = None,
    observer: Observer | None = None,
    hold_norms: bool = False,
    ranks: Ranks = ALONE,
) -> Training:
    """Train a copy of a model; the model itself, the teacher and the random state of the caller stay as they are.

    Args:
        module: any module, a traced one included; parameters with `requires_grad=False` stay fixed unless all are, and so do
            the running statistics of norms in which all are fixed.
        data: batches come from `data.train`, choices from `data.held_out`.
        recipe: epochs (fractions count in steps), optimizer, lr, weight_decay, batch_size, warmup, loss, distill, temperature,
            entropy_guidance, precision, clip, ema, patience, fsdp, metric, seed.
        device: where it is computed.
        teacher: the dense model, for distillation.
        progress: called after steps with the share done and a text with epoch, loss and time left.
        observer: told of steps and epochs.
        hold_norms: batch norms keep their running statistics, and use them, if the model is good already: a short training
            otherwise spends itself on the statistics of batches. A start that agrees with the teacher too little has statistics
            that are worth nothing; there they follow the batches all the same.
        ranks: the processes that call this together. Each has its samples of every batch, so a batch is as large as it is with
            one process; gradients are averaged at every step, running statistics of norms whenever they are looked at.

    Raises:
        BadInput: nothing to learn from, labels that the outputs cannot express, or a loss that is not finite.
    """
    device = torch.device(device)
    if recipe.epochs == 0:
        return Training(copy.deepcopy(module).eval(), (), 0, recipe.metric, ("No training: 0 epochs.",))
    metric, _ = quality.choose(recipe.metric, data.spec.task, data.spec.labeled)
    with seeded(recipe.seed, device):
        loop, notes = prepared(module, data, recipe, device, teacher, progress)
        loop = replace(loop, observer=observer, hold_norms=hold_norms, ranks=ranks)
        _refuse_idle(loop)
        if recipe.fsdp and ranks.count == 1:
            notes += ("--fsdp has nothing to share: one process trains.",)
        elif recipe.fsdp:
            loop = sharded(loop)
        volume = "" if loop.guidance is None else loop.guidance.said()
        seen = copy.deepcopy(module).to(device) if loop.in_parts else loop.average if loop.average is not None else loop.student
        history, best, state, harmed = _run(loop, metric, seen)
    result = copy.deepcopy(module).cpu()  # not the student, whose weights lie in another memory layout
    result.load_state_dict(state)
    chosen, last = history[best], history[-1]
    notes += (
        f"Best epoch {chosen.number:.3g} of {last.number:.3g} by held-out {metric.name}: {chosen.quality:.4f}, "
        f"before training {history[0].quality:.4f}.",
        *harmed,
    )
    if loop.guidance is not None:
        weight, now = recipe.entropy_guidance, loop.guidance.said()
        notes += (f"Entropy guidance {weight:g}: log volume in nats per value before training {volume}; at its end {now}.",)
    return Training(result.eval(), tuple(history), best, metric.name, notes)


def _run(loop: Loop, metric: quality.Metric, seen: nn.Module) -> tuple[list[Epoch], int, dict[str, Tensor], tuple[str, ...]]:
    """All epochs: (history, index of the chosen entry, state of the chosen entry, why it was taken back).

    `seen` is what held-out data is counted with: what is measured itself, or a model that takes its weights.
    """
    measured = loop.average if loop.average is not None else loop.student
    start = time.perf_counter()

    def counted(metric: quality.Metric, slices: int) -> quality.Counted:
        split = loop.data.held_out
        mine = loop.ranks.share(split.count(quality.BATCH)).numbers
        batches = (laid(b, loop) for b in split.batches(quality.BATCH, device=loop.device, only=mine))
        # What would be left if training ended here: the affine functions alone (see `gradual_linearize`).
        advance(seen, 1.0)
        return quality.count(seen, batches, metric, loop.device, loop.teacher, slices, loop.ranks)

    def look() -> quality.Quality:
        loop.ranks.mean([b for b in measured.buffers() if b.is_floating_point()])
        if seen is not measured:
            seen.load_state_dict(whole(measured))
        return quality.finished(counted(metric, 1), metric)

    first = look()
    # Held-out samples that were cut from the training data share its tensors.
    untouched, cut = whole(measured), any(x is y for x in loop.data.held_out.inputs for y in loop.data.train.inputs)
    history, best, state = [Epoch(0.0, math.nan, first.value, 0.0)], 0, untouched
    # Seen in the dense model's training: the state before would win for the wrong reason (docstring).
    known = cut and metric.reference == "target" and loop.data.spec.labeled
    top, top_at, done, chosen = None if known else first, 0, 0, first
    asked = known or loop.hold_norms
    begun = harm.start(counted, loop.data.spec.task, loop.teacher is not None) if asked else None
    loop = replace(loop, hold_norms=loop.hold_norms and begun is not None and begun.good)
    if loop.observer is not None:
        loop.observer.epoch(loop.student)
    while done < loop.steps:
        count = min(loop.per_epoch, loop.steps - done)
        mean_loss = _epoch(loop, done, count)
        done += count
        if loop.observer is not None:
            loop.observer.epoch(loop.student)
        now = look()
        history.append(Epoch(done / loop.per_epoch, mean_loss, now.value, time.perf_counter() - start))
        if top is None or quality.better(now, top):
            top, top_at = now, len(history) - 1
        # The last one within a standard error, not the first best (docstring).
        if _as_good(now, top) and (known or not quality.better(first, now)):
            best, state, chosen = len(history) - 1, whole(measured), now
        if loop.recipe.patience and len(history) - 1 - top_at >= loop.recipe.patience:
            break
    if top is not None and _failed(first, top):
        return history, 0, untouched, ()
    if known and begun is not None and best:
        seen.load_state_dict(state)
        if why := begun.harmed(first, chosen):
            return history, 0, untouched, (why,)
    return history, best, state, ()


def _refuse_idle(loop: Loop) -> None:
    """Every process needs a sample of every batch.

    Raises:
        BadInput: there are more processes than samples.
    """
    samples = min(loop.recipe.batch_size, len(loop.data.train))
    if samples < loop.ranks.count:
        raise BadInput(
            f"A batch has {samples} samples for {loop.ranks.count} processes; needed is one for each. Take fewer processes, or a "
            "larger --batch-size."
        )


def _as_good(now: quality.Quality, top: quality.Quality) -> bool:
    """No worse than the best by more than a standard error, where that is known: for shares of samples."""
    return now.value >= top.value - top.standard_error if now.higher_is_better else now.value <= top.value


def _failed(first: quality.Quality, top: quality.Quality) -> bool:
    if first.higher_is_better:
        return top.value < FAILED * first.value
    # An error: it has failed when it is five times as large.
    return first.value < (1 - FAILED) * top.value


def _epoch(loop: Loop, done: int, count: int) -> float:
    """`count` steps, the first of which is number `done`: the mean loss."""
    recipe, total = loop.recipe, torch.zeros((), device=loop.device)
    loop.student.train()
    for norm in frozen_norms(loop.student, loop.hold_norms):
        norm.eval()
    batches = loop.data.train.batches(
        recipe.batch_size,
        shuffle=True,
        seed=recipe.seed,
        epoch=done // loop.per_epoch,
        augment=True,
        drop_last=True,
        device=loop.device,
        ranks=loop.ranks,
    )
    taken = 0
    for batch in batches:
        step = done + taken
        if taken == count:
            break
        for module in (loop.student, loop.average):
            if module is not None:
                advance(module, step / loop.steps)
        for group in loop.optimizer.param_groups:
            group["lr"] = group["peak"] * rate(step, loop.steps, math.ceil(recipe.warmup * loop.steps))
        total += _step(loop, laid(batch, loop))
        taken += 1
        if loop.average is not None:
            # Low at first, or the average would hold on to the weights before training.
            _blend(loop.average, loop.student, min(recipe.ema, (1 + step) / (10 + step)))
        if loop.device.type == "cpu" or taken % LOOK == 0 or taken == count:
            mean = float(total) / taken
            if not math.isfinite(mean):
                raise BadInput(
                    f"The training loss is {mean} at step {step + 1} of {loop.steps}. Lower --lr (now {_told(loop)}), or set "
                    f"--clip (now {recipe.clip:g}); the weights before training are untouched."
                )
            loop.report(step + 1, mean)
    return float(total) / max(taken, 1)


def _step(loop: Loop, batch: Batch) -> Tensor:
    """One step of the optimizer: the loss, detached."""
    with torch.autocast(loop.device.type, dtype=loop.half, enabled=loop.half is not None):
        dense = None
        if loop.teacher is not None and loop.distils:
            with torch.no_grad():
                dense = quality.first_output(loop.teacher(*batch.inputs))
        output = loop.student(*batch.inputs)
    # The loss in float32, outside of autocast.
    loss = loop.loss(output, batch.target, dense)
    if loop.ranks.count > 1:
        # The mean over the whole batch is that over processes of means that weigh as many samples as each has.
        loss = loss * (len(output) * loop.ranks.count / min(loop.recipe.batch_size, len(loop.data.train)))
    if loop.guidance is not None:
        loss = loss - loop.recipe.entropy_guidance * loop.guidance.reward()
    loop.optimizer.zero_grad(set_to_none=True)
    loop.scaler.scale(loss).backward()
    if not loop.in_parts:  # else the backward pass has done so
        loop.ranks.mean([p.grad for p in trainable(loop.student) if p.grad is not None])
    if loop.recipe.clip or loop.observer is not None:
        # Observers and the clip need the true gradients, not those of the scaled loss.
        loop.scaler.unscale_(loop.optimizer)
    if loop.observer is not None:
        loop.observer.step(loop.student)
    if loop.recipe.clip:
        nn.utils.clip_grad_norm_(trainable(loop.student), loop.recipe.clip)
    loop.scaler.step(loop.optimizer)
    loop.scaler.update()
    return loss.detach()


def _told(loop: Loop) -> str:
    """The rate as it would be given: where it follows from the weights, between what and what."""
    if loop.recipe.lr is not None:
        return f"{loop.recipe.lr:g}"
    peaks = [group["peak"] for group in loop.optimizer.param_groups if group["params"]]
    return f"{min(peaks):.1g} to {max(peaks):.1g}, by the size of the weights"


def rate(step: int, steps: int, warmup: int) -> float:
    """The learning rate of a step, as a share of the highest (docstring)."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.no_grad()
def _blend(average: nn.Module, student: nn.Module, decay: float) -> None:
    for mean, now in zip(average.state_dict().values(), student.state_dict().values(), strict=True):
        # Counters of norms are whole numbers and have no average.
        mean.lerp_(now, 1 - decay) if mean.is_floating_point() else mean.copy_(now)
