"""`compress detector`: a whole detector made smaller in its own class, every step measured by mean average precision.

    detector + images with boxes -> dense -> remove (and refit) -> finetune by its own losses -> detector.pt, model.onnx

What is traced, timed and exported is the part that computes tensors (`compress.detection.wholes`); quality is that of the boxes
of the whole.
"""

from __future__ import annotations

import copy
import importlib
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from compress.artifact import Artifact
from compress.checkpoint.load.live_module import in_memory
from compress.commands.detector_input import Parts, Place, context_of_part, named_data, opened, parts_of
from compress.commands.outputs import free
from compress.commands.steps import edited, put_back, stage_of
from compress.detection import own_losses, wholes
from compress.detection.answered import answering
from compress.detection.coco import CocoImages
from compress.detection.mean_precision import Matched, between, matched, packages
from compress.edits import Plan
from compress.errors import BadInput, GateFailed
from compress.keywords import StepSettings, with_step_settings
from compress.measure import quality
from compress.pipeline.answers import FileAnswer, answers
from compress.pipeline.doubts import warned
from compress.pipeline.exports import Exports, export_all
from compress.pipeline.final_report import report_of, write
from compress.pipeline.harness import Harness
from compress.pipeline.latency_cache import LatencyCache
from compress.pipeline.prepare import find_device
from compress.pipeline.workspace import open_workspace
from compress.progress import Progress, silent
from compress.recipe import Recipe, make
from compress.report.html.command_line import IN_MEMORY, PRECISION
from compress.report.records import Exactness, Outcome, Quality, Report, StageRecord
from compress.stage import Context
from exporters import atomic

LITTLE = 0.01
OF_WHAT = (
    "Parameters, MACs, memory, milliseconds and files are of the part of the detector that computes tensors; the quality is the "
    "mean average precision of the whole detector's boxes."
)


@dataclass(frozen=True)
class Detected:
    """A smaller detector.

    Attributes:
        model: in its own class, on the device and in the mode of what was given.
        plan: the edits of its part; `compress.edit` carries them out on another detector of the architecture.
        report: every stage, measured alike.
        out: the folder with detector.pt, model.onnx, model.compressed, plan.json and the report.
    """

    model: nn.Module
    plan: Plan
    report: Report
    out: Path


@with_step_settings
def detector(
    model: nn.Module | Place,
    data: Parts,
    *,
    target: str = "macs=0.7",
    out: Place = Path("detector"),
    force: bool = False,
    progress: Progress = silent,
    **settings: Unpack[StepSettings],
) -> Detected:
    """From a detector to a smaller one in its own class, measured by mean average precision before and after every stage.

    Args:
        model: a detector of torchvision, ultralytics or transformers, or a file of one, opened as `run` opens files.
        data: a folder of images and boxes in COCO's format (`compress.detection.coco.open_parts`), or what `open_coco` gives:
            one, or a dict of train and test.
        target: as for `run`, of the part that computes tensors.
        out: folder of the results.
        force: replace what is there.
        progress: told what is being done.
        settings: as for `run`; method, calibration, epochs (0: no training), batch_size, lr, max_drop, export, seed, device and
            those that open a file matter here. `input_shape` is the square that all but torchvision's see
            images in.

    Raises:
        BadInput: no detector, or data or settings that cannot be used.
        MissingPackage: pycocotools is not installed.
        Infeasible: the target is out of reach.
        GateFailed: the result does not keep `max_drop`; everything is on disk.
        UnsupportedModel: nothing in its part can be removed.
    """
    free(Path(out), force, model, data)
    packages()
    for name in ("plan", "output", "metric", "loss"):
        if settings.pop(name, None) not in (None, "auto"):
            raise BadInput(f"A detector has no --{name}: it is judged by its boxes, and trained by its own losses. Leave it out.")
    named = str(model) if isinstance(model, str | Path) else f"{IN_MEMORY} ({type(model).__name__})"
    asked = make(**{**settings, "model": named, "target": target})
    whole, notes = opened(model, asked)
    train, test, more = parts_of(data, whole, asked)
    own_losses.refuse_other_classes(whole.model, train)
    if asked.epochs:
        own_losses.refuse_others_losses(whole.model)
    device = find_device(asked.device)
    seen, context = context_of_part(whole, train, test, {**settings, "target": target}, progress)
    dense = replace(context.dense, notes=(OF_WHAT, *notes, *more))
    recipe = asked.model_copy(update={"data": named_data(data), "metric": PRECISION, "align": context.recipe.align})
    run = _Run(whole, train, test, recipe, replace(context, dense=dense), device, progress)
    with open_workspace(Path(out), recipe, resume=False, force=force) as workspace, tempfile.TemporaryDirectory() as scratch:
        small = run.stages(seen, Path(scratch))
        exports = run.exported(workspace.out)
        report = report_of(recipe, run.rows, run.proofs, (dense, run.part), exports, None)
        report = write(workspace, run.part, report)
        _written(small, workspace.out / "detector.pt")
    if report.outcome is not Outcome.KEPT:
        raise GateFailed(f"{report.verdict} {out}", report)
    there = next(whole.model.parameters()).device if isinstance(model, nn.Module) else "cpu"
    return Detected(small.to(there), run.part.plan, report, Path(out))


@dataclass
class _Run:
    """What is known of a run so far: its rows, and the smaller part."""

    whole: wholes.Whole
    train: CocoImages
    test: CocoImages
    recipe: Recipe
    context: Context
    device: torch.device
    progress: Progress
    rows: list[StageRecord] = field(default_factory=list)
    proofs: list[Exactness | None] = field(default_factory=list)
    part: Artifact = field(init=False)
    small: nn.Module = field(init=False)
    dense: Matched = field(init=False)
    harness: Harness = field(init=False)

    def stages(self, seen: tuple[Tensor, ...], scratch: Path) -> nn.Module:
        """The smaller detector; leaves a row for each stage."""
        context, recipe = self.context, self.recipe
        metric, _ = quality.choose(context.recipe.metric, context.data.spec.task, context.data.spec.labeled)
        self.harness = Harness(recipe, context.data, context.dense, context.device, metric, LatencyCache(recipe, context.device))
        self.part, self.small = context.dense, self.whole.model
        self._row("dense", 0.0, scratch)
        if self.dense.precision.value < LITTLE:
            said = f"The detector finds next to nothing in the test images (mAP {self.dense.precision.value:.2%})"
            self.part = warned(self.part, f"{said}, so that what it loses tells nothing. Look for what it was trained on.")
        start = time.perf_counter()
        made = edited(self.whole.part, stage_of(recipe, "width"), replace(context, dense=self.part))
        self.small = put_back(self.whole, made, seen).model
        self.part = replace(self.part, module=cast(GraphModule, made.model).eval(), plan=made.plan)
        self.part = self.part.noting(*made.notes)
        proof = self.harness.exactness(context.dense, made.plan.edits)
        self._row("remove", time.perf_counter() - start, scratch, proof)
        if recipe.epochs:
            start = time.perf_counter()
            self.small, losses = own_losses.train(self.small, self.train, recipe, self.device, self.progress)
            part = in_memory(cast(wholes.Whole, wholes.found(self.small)).part, inputs=tuple(x[:1] for x in seen))
            self.part = replace(self.part, module=part.module)
            self.part = self.part.noting(f"Loss of the training, epoch by epoch: {', '.join(f'{loss:.4g}' for loss in losses)}.")
            self._row("finetune", time.perf_counter() - start, scratch)
        return self.small

    def _row(self, stage: str, seconds: float, scratch: Path, proof: Exactness | None = None) -> None:
        self.progress(f"measure {stage}", 0.0, "")
        folder = scratch / f"{len(self.rows):02d}-{stage}"
        folder.mkdir()
        record = self.harness.record(self.part, stage, seconds, folder)
        self.rows.append(record.model_copy(update={"quality": self._quality(matched(self.small.to(self.device), self.test))}))
        self.small.cpu()
        self.proofs.append(proof)

    def _quality(self, found: Matched) -> Quality:
        first = not self.rows
        if first:
            self.dense = found
        drop = None if first else between(self.dense, found, seed=self.recipe.seed).ci95
        return Quality(metric=PRECISION, value=max(0.0, found.precision.value), samples=found.precision.images, drop_ci95=drop)

    def exported(self, out: Path) -> Exports:
        """The files of the part, each asked for boxes in its place where its kind allows that."""
        self.progress("export", 0.0, ", ".join(self.recipe.export))

        def measure(answer: Callable[..., Tensor]) -> Quality:
            return self._of_file(cast(FileAnswer, answer)) or cast(Quality, self.rows[-1].quality)

        made = export_all(self.context, out, self.part, measure, self.rows[0].quality)
        records = tuple(
            one.model_copy(update={"quality": one.quality or self._of_file_at(one.format, out / one.path)})
            for one in made.records
        )
        return replace(made, records=records)

    def _of_file_at(self, format: str, path: Path) -> Quality | None:
        return self._of_file(answers(format, path)) if format.startswith("onnx") else None

    def _of_file(self, answer: FileAnswer) -> Quality | None:
        """None where boxes cannot be made of it: more inputs than images, or images of another size than the file takes."""

        def said(images: Tensor) -> list[Tensor]:
            return [torch.from_numpy(one.copy()) for one in answer.loaded.run([images.contiguous().numpy()])]

        model = copy.deepcopy(self.small)
        sizes = {tuple(self.whole.tensors([self.test[i][0]])[0].shape[1:]) for i in range(len(self.test))}
        if sizes != {tuple(self.part.inputs[0].shape[1:])}:
            return None
        with answering(model, said) as can:
            return self._quality(matched(model, self.test)) if can else None


def _written(small: nn.Module, path: Path) -> None:
    """The whole detector with its class, as whoever made it opens it: ultralytics' in a dictionary, as its trainer does."""
    made = copy.deepcopy(small).eval()
    content: Any = made
    if type(made).__module__.startswith("ultralytics"):
        importlib.import_module("ultralytics")
        made.__dict__.pop("criterion", None)  # of a training, with tensors of its own
        content = {"model": made, "train_args": {}, "epoch": -1}
    with atomic.staged(path) as place:
        torch.save(content, place)
