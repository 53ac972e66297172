"""What a training needs before its first step: copies on the device, the optimizer, the memory layout, the random state."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.data import Batch, Data, check_output
from compress.errors import BadInput
from compress.measure import quality
from compress.progress import Progress, duration
from compress.ranks import ALONE, Ranks
from compress.recipe import Recipe
from compress.training.guidance import Guidance, guidance
from compress.training.losses import Objective, objective, taught

FLAT, FLAT_SGD = 1e-3, 1e-2
"""Learning rates where none is given and the size of weights does not tell: of biases and norms, and of SGD."""
SHARE, SMALLEST = 0.01, 1e-3
"""Of the root mean square of a parameter's weights, which is taken to be at least so much."""


class Observer(Protocol):
    """Somebody who looks on at a training and changes nothing."""

    def step(self, student: nn.Module) -> None:
        """The gradients of a batch are there, the optimizer's step is to come."""
        ...

    def epoch(self, student: nn.Module) -> None:
        """An epoch is over, or what there was of the last one; called before the first one, too."""
        ...


@dataclass(frozen=True)
class Loop:
    """What stays the same during a training.

    Attributes:
        average: running mean of the student's weights, or None.
        half: the half-precision type of the forward passes, or None.
        guidance: layers whose volume is rewarded, or None.
        steps, per_epoch: of the optimizer.
        report: called with the number of steps done and the mean loss.
        observer: told of steps and epochs.
        hold_norms: batch norms keep their running statistics, and use them.
        ranks: the processes that train together, each on its samples of every batch.
        in_parts: weights lie in parts in these processes (`sharded`).
    """

    student: nn.Module
    teacher: nn.Module | None
    average: nn.Module | None
    loss: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    data: Data
    recipe: Recipe
    device: torch.device
    layout: torch.memory_format
    half: torch.dtype | None
    steps: int
    per_epoch: int
    report: Callable[[int, float], None]
    guidance: Guidance | None = None
    observer: Observer | None = None
    hold_norms: bool = False
    ranks: Ranks = ALONE
    in_parts: bool = False

    @property
    def distils(self) -> bool:
        """Whether the loss asks the teacher; a teacher may also be there for a metric that compares with it."""
        return taught(self.recipe, self.data.spec.labeled, self.teacher is not None) > 0


def prepared(
    module: nn.Module, data: Data, recipe: Recipe, device: torch.device, teacher: nn.Module | None, progress: Progress | None
) -> tuple[Loop, tuple[str, ...]]:
    """The loop's parts, and one sentence each about what a reader should know."""
    loss, said = objective(recipe, data.spec.task, data.spec.labeled, teacher is not None)
    notes = [said]
    student = copy.deepcopy(module).to(device)
    if not trainable(student):
        notes.append("All parameters were fixed (requires_grad=False); all are trained.")
        student.requires_grad_(True)
    elif len(trainable(student)) < len(list(student.parameters())):
        notes.append(
            f"{sum(not p.requires_grad for p in student.parameters())} fixed parameters (requires_grad=False) stay fixed"
            + (f", and the running statistics of {held} norms." if (held := len(frozen_norms(student))) else ".")
        )
    master = None if teacher is None else copy.deepcopy(teacher).to(device).eval()
    example = next(data.held_out.batches(2, device=device))
    check_output(data, _tried(student, example.inputs).shape, ":" in recipe.metric and ":" in recipe.loss)
    layout = _layout([student] if master is None else [student, master], example)
    per_epoch = max(1, len(data.train) // recipe.batch_size)
    steps = max(1, round(recipe.epochs * per_epoch))
    half = _half(recipe.precision, device)
    guide = guidance(student, lambda: _tried(student, example.inputs)) if recipe.entropy_guidance else None
    if recipe.entropy_guidance and guide is None:
        notes.append("--entropy-guidance has nothing to act on: no linear layer and no convolution.")
    average = copy.deepcopy(student).eval() if recipe.ema else None
    scaler = torch.amp.GradScaler(device.type, enabled=half == torch.float16)
    loop = Loop(
        student,
        master,
        average,
        loss,
        optimizer_for(student, recipe),
        scaler,
        data,
        recipe,
        device,
        layout,
        half,
        steps,
        per_epoch,
        _reporter(progress, steps, per_epoch),
        guide,
    )
    return loop, tuple(notes)


def _half(precision: str, device: torch.device) -> torch.dtype | None:
    if precision == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


def _layout(modules: Sequence[nn.Module], example: Batch) -> torch.memory_format:
    """Channels last, in place, where all models run that way: their convolutions are faster then."""
    layout = torch.channels_last
    if example.inputs[0].ndim != 4 or not any(isinstance(part, nn.Conv2d) for part in modules[0].modules()):
        return torch.contiguous_format
    try:
        for module in modules:  # copies, because weights of one input channel do not find back to their old strides
            _tried(copy.deepcopy(module).to(memory_format=layout), tuple(_laid_out(x, layout) for x in example.inputs))
    except RuntimeError:  # the model calls .view on activations, which this layout does not allow
        return torch.contiguous_format
    for module in modules:
        module.to(memory_format=layout)
    return layout


def _tried(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    """First output in eval mode, so that running statistics stay."""
    modes = {part: part.training for part in module.modules()}
    try:
        with torch.no_grad():
            return quality.first_output(module.eval()(*inputs))
    finally:
        for part, mode in modes.items():
            part.training = mode


def laid(batch: Batch, loop: Loop) -> Batch:
    """The batch on the loop's device, in its memory layout."""
    return Batch(tuple(_laid_out(x.to(loop.device), loop.layout) for x in batch.inputs), batch.target)


def _laid_out(x: Tensor, layout: torch.memory_format) -> Tensor:
    return x.contiguous(memory_format=layout) if x.ndim == 4 else x


def frozen_norms(module: nn.Module, all_of_them: bool = False) -> list[nn.Module]:
    """Batch norms whose parameters are fixed, or that have none and stand in a block whose parameters are; or all."""
    modules = dict(module.named_modules())
    norms = [(name, part) for name, part in modules.items() if isinstance(part, _BatchNorm)]
    return [part for name, part in norms if all_of_them or _frozen(name, modules)]


def _frozen(name: str, modules: Mapping[str, nn.Module]) -> bool:
    while True:
        if parameters := list(modules[name].parameters()):
            return not any(p.requires_grad for p in parameters)
        if not name:
            return False
        name = name.rpartition(".")[0]


def refuse_apart(recipe: Recipe) -> None:
    """Refuse weights in parts for what looks at whole ones.

    Raises:
        BadInput: entropy guidance with fsdp.
    """
    if recipe.fsdp and recipe.entropy_guidance:
        raise BadInput("--fsdp does not go with --entropy-guidance, which looks at whole weights. Leave one of them out.")


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """Parameters that are not fixed."""
    return [p for p in module.parameters() if p.requires_grad]


def optimizer_for(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer; each group has its highest learning rate as `peak`."""
    found: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p in trainable(module):
        # Decay pulls weights towards 0; for biases and norms (one axis) that is no simpler function, so they are spared.
        found.setdefault((_peak(p, recipe), recipe.weight_decay if p.ndim > 1 else 0.0), []).append(p)
    groups = [{"params": those, "lr": peak, "peak": peak, "weight_decay": decay} for (peak, decay), those in found.items()]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups)


def _peak(parameter: nn.Parameter, recipe: Recipe) -> float:
    """Peak learning rate of one parameter.

    A step of Adam moves every weight by about the rate, whatever the weight's size. One rate for all that suits the large weights
    of narrow layers makes wide ones, whose weights are small, forget what they knew. So the rate is a share of the root mean
    square of the weights (Shazeer & Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", section 8,
    arXiv:1804.04235, with its 0.01 and its floor). It departs from the paper in that it is fixed by the weights before training.
    """
    if recipe.lr is not None:
        return recipe.lr
    if recipe.optimizer == "sgd":
        return FLAT_SGD
    if parameter.ndim <= 1:
        return FLAT
    size = max(float(parameter.detach().float().square().mean().sqrt()), SMALLEST)
    # In steps of the root of 2, so that an optimizer's groups are few.
    return SHARE * 2 ** (round(2 * math.log2(size)) / 2)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeded dropout and repeatable convolutions inside, the caller's random state afterwards."""
    cuda = device.type == "cuda"
    devices = [device.index if device.index is not None else torch.cuda.current_device()] if cuda else []
    # torch.backends.cudnn.flags as a context would also set switches that are none of our business.
    before = torch.backends.cudnn.deterministic
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        torch.backends.cudnn.deterministic = cuda or before
        try:
            yield
        finally:
            torch.backends.cudnn.deterministic = before


def _reporter(progress: Progress | None, steps: int, per_epoch: int) -> Callable[[int, float], None]:
    start, last = time.perf_counter(), [0.0]

    def report(step: int, loss: float) -> None:
        now = time.perf_counter()
        if progress is None or (now - last[0] < 0.2 and step % per_epoch and step < steps):
            return
        last[0] = now
        left = (now - start) / step * (steps - step)
        epoch = f"epoch {math.ceil(step / per_epoch)} of {math.ceil(steps / per_epoch)}"
        progress("training", step / steps, f"{epoch}, loss {loss:.3g}, {duration(left)} left")

    return report
