"""`compress finetune`: training of a model that is there, small or not, with a dense one as its teacher.

Of a module in memory a trained copy comes back, of the same class. Of a file a folder model.compressed is written, and what
training did to the quality on the test data is told, with a paired interval.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast, overload

from torch import nn
from torch.fx import GraphModule

from compress.checkpoint.load import open_artifact
from compress.checkpoint.load.live_module import as_module
from compress.checkpoint.save import require_place, save
from compress.commands.outputs import free
from compress.data import open_data
from compress.detection.coco import is_coco
from compress.errors import BadInput, CompressError
from compress.keywords import StepSettings, with_step_settings
from compress.measure import heap, quality
from compress.measure.drop import drop_interval
from compress.measure.runtime import threads_of
from compress.pipeline.answers import counted
from compress.pipeline.given import device_of, resolved_recipe
from compress.pipeline.prepare import find_device, prepare
from compress.pipeline.workspace import beside
from compress.progress import Progress, silent
from compress.ranks import ALONE, own_threads
from compress.recipe import Recipe
from compress.report.records import Quality
from compress.stage import Context
from compress.stages.finetune import holds_norms
from compress.training import train

if TYPE_CHECKING:
    from compress.keywords import DataLike

M = TypeVar("M", bound=nn.Module)
Place = str | Path
TUNED = Path("tuned.compressed")


@dataclass(frozen=True)
class Tuned:
    """What training did to a model file.

    Attributes:
        path: the folder that holds the trained model.
        before: quality of the model as it was, on the test data.
        after: that of the trained one; what it lost (below 0: gained) since has a 95 % interval, `drop_ci95`.
        teacher: that of the teacher; None where there is none.
        notes: what was done, a sentence each.
    """

    path: Path
    before: Quality
    after: Quality
    teacher: Quality | None
    notes: tuple[str, ...]


@overload
def finetune(
    model: M,
    data: DataLike,
    *,
    teacher: nn.Module | None = None,
    threads: int = 0,
    progress: Progress = silent,
    **settings: Unpack[StepSettings],
) -> M: ...
@overload
def finetune(
    model: Place,
    data: DataLike,
    *,
    teacher: Place | None = None,
    teacher_arch: str | None = None,
    teacher_arch_kwargs: Mapping[str, Any] | None = None,
    out: Place = TUNED,
    force: bool = False,
    threads: int = 0,
    progress: Progress = silent,
    **settings: Unpack[StepSettings],
) -> Tuned: ...
@with_step_settings
def finetune(
    model: nn.Module | Place,
    data: DataLike,
    *,
    teacher: nn.Module | Place | None = None,
    teacher_arch: str | None = None,
    teacher_arch_kwargs: Mapping[str, Any] | None = None,
    out: Place = TUNED,
    force: bool = False,
    threads: int = 0,
    progress: Progress = silent,
    **settings: Any,
) -> nn.Module | Tuned:
    """Train a model on the data, and with a teacher on its outputs as well; the weights of the best epoch are kept.

    A module gives a trained copy of it, of its own class, and is not changed itself. A file gives the folder `out`, which `load`
    opens, and a `Tuned`. The model may have been made smaller by anything: nothing is asked of it but that it runs, and of a
    file that it can be traced.

    Args:
        model: any module, or a model file; frozen parameters stay so.
        data: as for `run`; labels are not needed with a teacher.
        teacher: the dense model, whose outputs are learned with the weight `distill`: a module for a module, a file for a file.
        teacher_arch: class of the teacher's weights, where `teacher` is a file of them and the class is not `arch`.
        teacher_arch_kwargs: keywords of that class; those of `arch` where neither is given.
        out: folder of the trained model, where `model` is a file.
        force: replace an older folder.
        threads: that torch computes with meanwhile; 0: as many as before.
        progress: told what is being done.
        settings: as for `run`; those of fine-tuning matter here, such as `epochs`, `lr`, `batch_size` and `loss`.

    Raises:
        BadInput: nothing to learn from, labels or a teacher that the outputs do not fit, or a loss that is not finite.
        UnsupportedModel: a model file cannot be traced.
    """
    if isinstance(model, str | Path):
        if isinstance(teacher, nn.Module):
            raise BadInput(f"The model is the file {model} and the teacher a module; needed are two files, or two modules.")
        free(Path(out), force, model, teacher)
        if isinstance(data, str | Path) and is_coco(data) and Path(model).is_dir():
            raise BadInput(
                f"{data} holds boxes in COCO's format, and {model} is a part of a detector at most, without losses of boxes. "
                "Train the whole one: 'compress detector' does so for --epochs, and writes detector.pt, to train on by its own "
                "losses."
            )
        require_place(Path(out))
        recipe, given = resolved_recipe(model, None, {**settings, "data": data})
        beside(Path(out), recipe)
        with _computing_on(threads):
            context, metric = prepare(recipe, progress, given)
            dense = None if teacher is None else _opened(teacher, teacher_arch, teacher_arch_kwargs, context)
            return _tuned(context, metric, dense, Path(out))
    if isinstance(teacher, str | Path):
        raise BadInput(
            f"The teacher is the file {teacher} and the model a module; needed is a module: compress.load opens files."
        )
    module = as_module(model)
    recipe, given = resolved_recipe(module, None, {**settings, "data": data})
    opened = given.data or open_data(recipe.data, seed=recipe.seed, trust=recipe.trust_recipe)
    device = find_device(recipe.device)
    held = teacher is not None and holds_norms(recipe)
    with _computing_on(threads):
        found = train(module, opened, recipe, device, teacher=teacher, progress=progress, hold_norms=held).module
    return found.to(device_of(model)).train(model.training)


@contextmanager
def _computing_on(threads: int) -> Generator[None]:
    """So many threads of torch, and memory that stays, while the block lasts.

    Raises:
        BadInput: fewer than none, or many times more than there are cores.
    """
    if threads < 0:
        raise BadInput(f"--threads is {threads}; needed is a whole number of 0 or more.")
    threads_of(threads)  # for its refusal
    with own_threads.threads(threads), heap.kept():
        yield


def _tuned(context: Context, metric: quality.Metric, teacher: nn.Module | None, out: Path) -> Tuned:
    """Train, measure before and after, write."""
    recipe, dense = context.recipe, context.dense

    how = context.data.test, metric, context.device, teacher
    _refuse_nothing_to_learn(recipe, context, metric, teacher)
    before = counted(ALONE, dense.module, *how)
    held = holds_norms(recipe)
    found = train(dense.module, context.data, recipe, context.device, teacher=teacher, progress=context.progress, hold_norms=held)
    context.progress("measure", 0.0, "")
    after = counted(ALONE, found.module, *how)
    save(replace(dense, module=cast(GraphModule, found.module)), out)
    return Tuned(
        out,
        _record(metric, before),
        _record(metric, after, drop_interval(metric, before, after)),
        None if teacher is None else _record(metric, counted(ALONE, teacher, *how)),
        (*dense.notes, *found.notes),
    )


def _refuse_nothing_to_learn(recipe: Recipe, context: Context, metric: quality.Metric, teacher: nn.Module | None) -> None:
    if recipe.epochs == 0:
        raise BadInput("--epochs is 0, and nothing would be trained. Give more than 0.")
    if teacher is None and (not context.data.spec.labeled or metric.reference == "dense"):
        what = f"The metric {metric.name} compares" if context.data.spec.labeled else "The data has no labels: training goes by"
        raise BadInput(f"{what} with a teacher, and none was given. Give --teacher DENSE, the model that this one was made from.")


def _opened(path: Place, arch: str | None, kwargs: Mapping[str, Any] | None, context: Context) -> nn.Module:
    """The teacher of a file, if it answers as the model does.

    Raises:
        BadInput: it cannot be opened, or gives outputs of another shape.
    """
    recipe = context.recipe
    own = arch is not None or kwargs is not None
    try:
        opened = open_artifact(
            path,
            arch=arch or recipe.arch,
            arch_kwargs=(kwargs or {}) if own else recipe.arch_kwargs,
            trust_pickle=recipe.trust_pickle,
            output=recipe.output,
            input_shapes=tuple(tuple(x.shape[1:]) for x in context.dense.inputs),
        )
    except CompressError as error:
        said = str(error).replace("--arch ", "--teacher-arch ").replace("--arch-kwargs", "--teacher-arch-kwargs")
        raise type(error)(f"The teacher: {said}") from error
    # Dense models lie on the CPU when they are opened; the artifact of the run is where it works.
    first = next(iter(context.data.train.batches(1))).inputs
    shapes = [tuple(quality.first_output(one(*first)).shape)[1:] for one in (opened.module, context.dense.on("cpu"))]
    if shapes[0] != shapes[1]:
        there, here = ("x".join(map(str, shape)) or "one number" for shape in shapes)
        raise BadInput(
            f"The teacher {path} gives {there} for each sample, the model {here}. Give the dense model that this one was made "
            "from, with the same outputs."
        )
    return opened.on(context.device)


def _record(metric: quality.Metric, counted: quality.Counted, lost: tuple[float, float] | None = None) -> Quality:
    return Quality(**dataclasses.asdict(quality.finished(counted, metric)), drop_ci95=lost)
