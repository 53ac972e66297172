"""The stages as functions of one's own training loop: a module in, a smaller module out, plain torch between them.

    made = compress.remove(model, loader, target="macs=0.8")      # which channels go, and the rest reconstructed
    compress.follow(optimizer, made)                              # momentum and moments go on with the channels that stay
    model = made.model                                            # train on

Each is the stage of a run, called once. The module that is given is not changed; what comes back is on its device and in its
mode (`train()` or `eval()`), and its weights share nothing with it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.optim import Optimizer

from compress.artifact import Artifact, apply
from compress.checkpoint.load.live_module import as_module, examples, in_memory, inside
from compress.detection import wholes
from compress.edits import Edit, Plan
from compress.errors import BadInput, PlanMismatch
from compress.keywords import StepSettings, with_step_settings
from compress.pipeline.exports import CALIBRATION_SAMPLES, batches
from compress.pipeline.given import device_of, resolved_recipe
from compress.pipeline.latency_cache import LatencyCache
from compress.pipeline.prepare import prepare
from compress.pipeline.sequence import stages_of
from compress.progress import Progress, silent
from compress.recipe import Recipe, make
from compress.stage import Context, Decides, Stage
from compress.stages.merge import Merge
from compress.stages.reconstruct import Reconstruct
from compress.training.optimizer_state import follow as followed
from compress.training.qat import train_rounded, values
from compress.training.setup import seeded
from exporters import qdq

if TYPE_CHECKING:
    from compress.keywords import DataLike

M = TypeVar("M", bound=nn.Module)
Examples = Tensor | Sequence[Tensor]


@dataclass(frozen=True, repr=False)
class Edited:
    """A model after one edit, and what an optimizer needs to follow it.

    Attributes:
        model: the smaller model; a detector comes back in its own class.
        plan: the edits that led to it; it can be stored, and carried out again by `edit` or `compress apply`.
        notes: what was decided, a sentence each.
        before: the module that was given; it is as it was.
        traced: the same as the edits know it.
    """

    model: nn.Module
    plan: Plan
    notes: tuple[str, ...]
    before: nn.Module
    traced: Artifact

    def __repr__(self) -> str:
        params = [sum(p.numel() for p in module.parameters()) for module in (self.before, self.model)]
        return f"<{type(self).__name__}: {params[0]:,} parameters before, {params[1]:,} after, {len(self.plan.edits)} edits>"


@with_step_settings
def remove(
    model: nn.Module,
    data: DataLike,
    *,
    target: str = "macs=0.5",
    refit: bool = True,
    progress: Progress = silent,
    **settings: Unpack[StepSettings],
) -> Edited:
    """Take channels out, those that the method of the settings can do without, and reconstruct the layers behind them.

    Args:
        model: any module that can be traced, or a detector of torchvision, ultralytics or transformers, whose part that
            computes tensors is.
        data: as for `run`; for a detector images as it takes them, alone or in pairs with targets, such as `open_coco` gives.
        target: as for `run`, of the model as it is given; less than that is left. Of a detector: of that part.
        refit: fit the weights that stay to the outputs of the given model, by least squares. Without it no weight changes its
            value, and the smaller model computes what the given one does with these channels masked.
        progress: told what is being done.
        settings: as for `run`; `method`, `calibration`, `align`, `seed`, `device` and `inputs` matter here. Of a detector as many
            images count as `calibration` says and as fit into a gigabyte, the first ones.

    Raises:
        BadInput: the model, the data or a setting cannot be used, or the method removes no channels before training.
        Infeasible: the target is out of reach; says what is reachable.
        UnsupportedModel: the model cannot be traced, or nothing in it can be removed.
    """
    if settings.get("max_drop") is not None:
        raise BadInput(
            f"compress.remove goes down to its target ({target}) and looks for none that keeps max_drop. Leave max_drop out, or "
            "take compress.run, which looks for it."
        )
    if (detector := wholes.found(inside(as_module(model)))) is not None:
        return _removed(detector, data, {**settings, "target": target}, progress, refit)
    recipe, context = context_of(model, data, {**settings, "target": target}, progress)
    return edited(model, stage_of(recipe, "width"), replace(context, fitting=refit))


def _removed(detector: wholes.Whole, data: object, settings: dict[str, Any], progress: Progress, refit: bool) -> Edited:
    """`remove` in the part of a detector, which then goes back into it."""
    asked = make(**{name: value for name, value in settings.items() if name in ("calibration", "seed")})
    with seeded(asked.seed, torch.device("cpu")):
        seen = detector.seen(data, asked.calibration)
    recipe, context = context_of(detector.part, (seen, None), settings, progress)
    made = edited(detector.part, stage_of(recipe, "width"), replace(context, fitting=refit))
    return put_back(detector, made, seen)


def put_back(detector: wholes.Whole, made: Edited, seen: tuple[Tensor, ...]) -> Edited:
    some = tuple(x[: wholes.BATCH] for x in seen)
    whole = detector.with_layers(made.traced.module, cast(GraphModule, made.model), some)
    return replace(made, model=whole, before=detector.model)


@with_step_settings
def linearize(
    model: nn.Module, data: DataLike, *, depth: float = 1.0, progress: Progress = silent, **settings: Unpack[StepSettings]
) -> Edited:
    """Put affine functions in the place of activations where the layers around them are measurably faster as one.

    Args:
        model: any module that can be traced.
        data: as for `run`.
        depth: points of held-out quality that this may cost, before any training.
        progress: told what is being done.
        settings: as for `run`.

    Raises:
        BadInput: the model, the data or a setting cannot be used.
        UnsupportedModel: no activation can be linearized.
    """
    recipe, context = context_of(model, data, {"method": "depth", **settings, "depth": depth}, progress)
    return edited(model, stage_of(recipe, "depth"), context)


@with_step_settings
def merge(
    model: nn.Module, data: DataLike, *, timed: bool = True, progress: Progress = silent, **settings: Unpack[StepSettings]
) -> Edited:
    """Make one layer of those that follow each other without an activation; the model computes what it did.

    Args:
        model: any module that can be traced.
        data: as for `run`.
        timed: merge only what a race shows to be faster; else what takes fewer multiply-accumulates.
        progress: told what is being done.
        settings: as for `run`.

    Raises:
        BadInput: the model, the data or a setting cannot be used.
        UnsupportedModel: the model cannot be traced.
    """
    _, context = context_of(model, data, dict(settings), progress)
    return edited(model, Merge(), context if timed else replace(context, race=None))


def edit(model: nn.Module, plan: Plan, *, inputs: Examples) -> Edited:
    """Carry out a plan on a module: no data is looked at, and no weight is fitted.

    Args:
        model: a module of the architecture that the plan was made for.
        plan: the edits.
        inputs: an example of each input, batch first; for a detector one image or more, as a list.

    Raises:
        PlanMismatch: the plan was made for another model.
        UnsupportedModel: the model cannot be traced.
    """
    detector = wholes.found(inside(as_module(model)))
    seen = examples(inputs) if detector is None else detector.seen(inputs, wholes.BATCH)
    traced = in_memory(as_module(model) if detector is None else detector.part, inputs=seen)
    smaller = apply(plan, traced)
    made = Edited(_as_given(smaller.module, model), plan, smaller.notes, model, traced)
    return made if detector is None else put_back(detector, made, seen)


@with_step_settings
def reconstruct(
    model: nn.Module,
    data: DataLike,
    *,
    teacher: nn.Module,
    plan: Plan,
    steps: int = 500,
    progress: Progress = silent,
    **settings: Unpack[StepSettings],
) -> GraphModule:
    """Let the blocks of a smaller model learn, one after the other, to give what those of the dense one give; no labels.

    Args:
        model: the smaller model, trained further or not.
        data: as for `run`.
        teacher: the model that the plan was made for.
        plan: the edits that led from it to this one.
        steps: of the optimizer, for each block.
        progress: told what is being done.
        settings: as for `run`.

    Returns:
        A smaller model with other weights.

    Raises:
        PlanMismatch: the plan does not lead from the one model to the other.
        BadInput: the models, the data or a setting cannot be used.
    """
    _, context = context_of(teacher, data, {**settings, "reconstruct": steps}, progress)
    small = apply(plan, context.dense)
    weights = inside(as_module(model)).state_dict()
    _refuse_another_plan(small.module.state_dict(), weights)
    # Into the graph that the plan makes of the teacher's, whose nodes have the names of the teacher's; an empty plan makes none.
    small = replace(small, module=copy.deepcopy(small.module))
    small.module.load_state_dict(weights)
    with seeded(context.recipe.seed, context.device):
        return _as_given(Reconstruct()(small, context).module, model)


@with_step_settings
def quantize(
    model: nn.Module, data: DataLike, *, symmetric: bool = False, progress: Progress = silent, **settings: Unpack[StepSettings]
) -> GraphModule:
    """Train with the rounding of the 8-bit ONNX file in place, so that rounding costs least when `export` writes onnx-int8.

    Args:
        model: any module that can be traced.
        data: as for `run`.
        symmetric: the file has no zero points (onnx-int8-symmetric).
        progress: told what is being done.
        settings: as for `run`; `qat` are the epochs.

    Returns:
        A model in float, batch norms folded into the layers before them, whose weights are trained to be rounded.

    Raises:
        BadInput: the model, the data or a setting cannot be used.
        UnsupportedModel: the model cannot be traced.
    """
    _, context = context_of(model, data, dict(settings), progress)
    recipe, dense = context.recipe, context.dense.module
    seen = batches(context.data.train, min(recipe.calibration, CALIBRATION_SAMPLES), recipe.seed)
    ranges = qdq.ranges(values(dense, seen), recipe.calibrator)
    return _as_given(train_rounded(dense, ranges, symmetric, (), context), model)


def follow(optimizer: Optimizer, made: Edited) -> None:
    """Let the optimizer of a model go on with the edited one: momentum and moments of the weights that stay are kept exactly.

    The optimizer is changed in place; learning rates, groups and schedulers stay. One step afterwards is the step of the model
    before with the removed channels masked, as far as no weight was refitted. Layers that were merged begin without state.

    Args:
        optimizer: of `made.before`, with one number per weight in its state, or none (SGD, Adam, AdamW, RMSprop, ...).
        made: what `remove`, `linearize`, `merge` or `edit` gave.

    Raises:
        BadInput: the optimizer is of another model, or keeps state of another kind.
    """
    followed(optimizer, inside(made.before), made.traced, made.plan.edits, made.model)


def context_of(model: nn.Module, data: DataLike, settings: dict[str, Any], progress: Progress) -> tuple[Recipe, Context]:
    recipe, given = resolved_recipe(as_module(model), None, {**settings, "data": data})
    context, _ = prepare(recipe, progress, given)
    return recipe, replace(context, race=LatencyCache(recipe, context.device).race)


def stage_of(recipe: Recipe, kind: str) -> Stage:
    """The stage of the method that removes width or depth."""
    for stage in stages_of(recipe):
        if kind in stage.traits.removes and stage.traits.decides is Decides.BEFORE_TRAINING:
            return stage
    what = "channels" if kind == "width" else "activations"
    raise BadInput(
        f"The method {recipe.method} removes no {what} before training. Take another one that 'compress methods' lists."
    )


def edited(model: nn.Module, stage: Stage, context: Context) -> Edited:
    stage.check(context.dense, context)
    with seeded(context.recipe.seed, context.device):
        done = stage(context.dense, context)
    edits: tuple[Edit, ...] = done.plan.edits
    traced = replace(context.dense, module=context.dense.on("cpu"))
    plan = Plan(edits, context.recipe.method, context.recipe.align or 1)
    return Edited(_as_given(done.module, model), plan, done.notes[len(context.dense.notes) :], model, traced)


def _refuse_another_plan(planned: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    wanted, found = ({name: tuple(value.shape) for name, value in one.items()} for one in (planned, weights))
    if odd := [name for name in (*wanted, *found) if wanted.get(name) != found.get(name)]:
        there, here = (where.get(odd[0], "absent") for where in (wanted, found))
        raise PlanMismatch(
            f"The plan makes {odd[0]} {there} of the teacher, in the model it is {here}. Give the plan that led to it, and "
            "the teacher that it was made for."
        )


def _as_given(module: GraphModule, model: nn.Module) -> GraphModule:
    """A copy on the device and in the mode of the module that was given."""
    return _in_mode(copy.deepcopy(module).to(device_of(model)), model)


def _in_mode(module: M, model: nn.Module) -> M:
    return module.train(model.training)
