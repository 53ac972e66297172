"""A run: stages in a row, each measured, each on disk when it is finished.

    model + data -> dense -> stage -> stage -> ... -> exports -> report

This is the one place that times, measures, saves, resumes and turns a stage's crash into an error that says what is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.fx import GraphModule

import exporters
from compress.artifact import Artifact
from compress.data import check_output, open_data
from compress.errors import BadInput, CompressError, GateFailed, StageFailed, UnsupportedModel
from compress.graph import surgery
from compress.graph.channels import solve
from compress.harness import Harness
from compress.load import load, open_artifact
from compress.measure import quality
from compress.methods import METHODS
from compress.plan import Edit, from_json
from compress.recipe import Recipe
from compress.report import words
from compress.report.environment import environment
from compress.report.markdown import markdown
from compress.report.records import Exactness, ExportRecord, Parity, Report, StageRecord
from compress.save import save
from compress.stage import Context, Progress, Stage
from compress.workspace import Workspace, open_workspace

EXACT_RTOL = 1e-4
"""Removed and masked models sum the same numbers in another order: fp32 leaves about 1e-7 per layer of the largest output."""


@dataclass(frozen=True)
class _Done:
    """A finished stage."""

    artifact: Artifact
    record: StageRecord
    exactness: Exactness | None = None


def silent(what: str, share: float, detail: str = "") -> None:
    """A progress callback that shows nothing."""


def run(recipe: Recipe, out: Path | str, *, resume: bool = False, force: bool = False, progress: Progress = silent) -> Report:
    """Carry out a recipe and write `out/`.

    Args:
        recipe: every setting.
        out: folder of the results.
        resume: go on with a run of the same recipe that was cut off.
        force: replace another run's results.
        progress: told what is being done.

    Raises:
        BadInput: a setting, file or folder that cannot be used.
        Infeasible: the target cannot be reached; nothing was done.
        UnsupportedModel: the model cannot be traced, or nothing can be removed.
        GateFailed: the result does not keep `max_drop`, or removal was not exact. Everything is on disk.
        StageFailed: a stage broke; finished ones are on disk.
    """
    stages = stages_of(recipe)
    context, metric = prepare(recipe, progress)
    for stage in stages:
        stage.check(context.dense, context)  # before anything slow, and before out/ is touched
    workspace = open_workspace(Path(out), recipe, resume=resume, force=force)
    harness = Harness(recipe, context.data, context.dense, context.device, metric)
    done = _stages(workspace, harness, context, stages)
    result = done[-1].artifact
    with _disk_errors(workspace, [d.record.stage for d in done]):
        context.progress("export", 0.0, ", ".join(recipe.export))
        exports = _exports(workspace, harness, result)
        report = _report(recipe, harness, done, exports)
        _write(workspace, result, report)
    if report.exactness is not None and not report.exactness.holds:
        raise GateFailed(
            f"The model without the removed channels differs from the masked one by {report.exactness.worst_abs:.2g}, "
            f"more than {report.exactness.tolerance:.2g}. {workspace.out} holds the report; please report this model's structure."
        )
    if "--max-drop" in report.verdict:
        raise GateFailed(
            f"{report.verdict} {workspace.out} holds the model and the report; allow more, or train longer (--epochs)."
        )
    return report


def stages_of(recipe: Recipe) -> tuple[Stage, ...]:
    """The stages of the recipe's method that the recipe needs.

    Raises:
        BadInput: no such method.
    """
    if recipe.method not in METHODS:
        raise BadInput(f"The method is '{recipe.method}'; known are {', '.join(METHODS)}. See 'compress methods'.")
    return tuple(stage for stage in METHODS[recipe.method] if stage.needed(recipe))


def prepare(recipe: Recipe, progress: Progress = silent) -> tuple[Context, quality.Metric]:
    """Open data and model, and check that they fit each other: the head of every command that looks at both."""
    device = find_device(recipe.device)
    progress("open data", 0.0, recipe.data)
    data = open_data(recipe.data, seed=recipe.seed, shape=input_shapes(recipe)[0] if recipe.input_shape else None)
    progress("open model", 0.0, recipe.model)
    first = next(iter(data.train.batches(1)))
    shapes = input_shapes(recipe) or tuple(tuple(x.shape[1:]) for x in first.inputs)
    if len(shapes) != len(first.inputs):
        raise BadInput(
            f"The model takes {len(shapes)} inputs (--input-shape), the data gives {len(first.inputs)}. "
            "Needed are data with as many: a factory (--data module:factory) can give them."
        )
    dense = open_artifact(
        recipe.model, arch=recipe.arch, arch_kwargs=recipe.arch_kwargs, trust_pickle=recipe.trust_pickle, input_shapes=shapes
    )
    metric, chosen = quality.choose(recipe.metric, data.spec.task, data.spec.labelled)
    with torch.no_grad():
        check_output(data, tuple(quality.first_output(dense.module(*first.inputs)).shape))
    dense = dense.noting(*data.notes, *([chosen] if chosen else []))
    dense.module.to(device)
    return Context(dense, data, recipe, device, progress), metric


def input_shapes(recipe: Recipe) -> tuple[tuple[int, ...], ...]:
    """`3x32x32` -> (3, 32, 32), once per model input."""
    try:
        return tuple(tuple(int(n) for n in text.lower().split("x")) for text in recipe.input_shape)
    except ValueError:
        raise BadInput(f"--input-shape is {', '.join(recipe.input_shape)}; needed is CxHxW, such as 3x224x224.") from None


def find_device(name: str) -> torch.device:
    """The device of a name; `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        BadInput: unknown, or asked for and absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise BadInput(f"The device is '{name}'; needed is auto, cpu, cuda, cuda:N or mps.") from None
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):
        raise BadInput(
            f"The device {name} was asked for, but torch sees none here. Take --device cpu, or run where there is one."
        )
    return device


def _stages(workspace: Workspace, harness: Harness, context: Context, stages: Sequence[Stage]) -> list[_Done]:
    done = [_finished(workspace, harness, context, 0, "dense", lambda: context.dense, None)]
    for number, stage in enumerate(stages, 1):
        before = done[-1].artifact

        def carry_out(stage: Stage = stage, before: Artifact = before, number: int = number) -> Artifact:
            torch.manual_seed(context.recipe.seed * 1000 + number)  # a resumed stage draws what it would have drawn
            return stage(before, context)

        with _failures(stage.name, [d.record.stage for d in done]), _disk_errors(workspace, [d.record.stage for d in done]):
            done.append(_finished(workspace, harness, context, number, stage.name, carry_out, before))
    return done


def _finished(
    workspace: Workspace,
    harness: Harness,
    context: Context,
    number: int,
    name: str,
    carry_out: Callable[[], Artifact],
    before: Artifact | None,
) -> _Done:
    """A stage from disk where it is there, else carried out, measured and written."""
    facts = workspace.facts(number, name)
    folder = workspace.folder(number, name)
    if facts is not None and (number == 0 or (folder / "model.compressed").exists()):
        module = context.dense.module if number == 0 else load(folder / "model.compressed")
        assert isinstance(module, GraphModule)
        artifact = Artifact(module, context.dense.inputs, from_json(facts["plan"]), tuple(facts["notes"]))
        if number == 0:
            harness.remember_dense(folder / "model.onnx", context.dense)
        exactness = facts["exactness"] and Exactness(**facts["exactness"])
        return _Done(artifact, StageRecord(**facts["record"]), exactness or None)
    start = time.perf_counter()
    artifact = carry_out()
    seconds = time.perf_counter() - start
    context.progress(f"measure {name}", 0.0, "")
    edits = artifact.plan.edits[len(before.plan.edits) :] if before else ()
    exactness = exact(before, edits, harness) if before and edits else None
    kept, record = artifact, None

    def fill(staging: Path) -> dict[str, object]:
        nonlocal kept, record
        record = harness.record(artifact, name, seconds, staging)
        if number:
            try:
                save(artifact, staging / "model.compressed")
            except UnsupportedModel as error:
                kept = artifact.noting(
                    f"The model after stage '{name}' has no class-free form, so a cut-off run repeats it: {error}"
                )
        facts = {"record": record.model_dump(), "exactness": exactness and exactness.model_dump()}
        return {**facts, "plan": artifact.plan.to_json(), "notes": list(kept.notes)}

    workspace.finish(number, name, fill)
    assert record is not None
    return _Done(kept, record, exactness)


def exact(before: Artifact, edits: Sequence[Edit], harness: Harness) -> Exactness:
    """Removed against masked, on real inputs, before any weight was refitted."""
    channels = solve(before.module, before.inputs)
    removed, masked = surgery.keep(before.module, channels, edits), surgery.mask(before.module, channels, edits)
    worst, largest, samples = 0.0, 0.0, 0
    with torch.no_grad():
        for batch in harness.samples():
            placed = tuple(x.to(harness.device) for x in batch)
            one, other = (quality.first_output(m.to(harness.device).eval()(*placed)) for m in (removed, masked))
            worst = max(worst, float((one - other).abs().max()))
            largest = max(largest, float(other.abs().max()))
            samples += len(one)
    return Exactness(worst_abs=worst, tolerance=EXACT_RTOL * max(largest, 1e-3), samples=samples)


def _exports(workspace: Workspace, harness: Harness, result: Artifact) -> tuple[ExportRecord, ...]:
    spec, records = harness.data.spec, []
    metadata = {
        "compress.plan_sha256": result.plan.digest,
        "compress.mean": ",".join(map(str, spec.mean)),
        "compress.std": ",".join(map(str, spec.std)),
    }
    for name in harness.recipe.export:
        made = exporters.export(
            name,
            result.module,
            result.inputs,
            workspace.out / f"model.{name}",
            metadata=metadata,
            samples=harness.samples(),
            opset=harness.recipe.opset,
        )
        parity = made.parity and Parity(worst_abs=made.parity.worst_abs, tolerance=made.parity.tolerance)
        records.append(
            ExportRecord(format=name, path=made.path.name, sha256=made.sha256, parity=parity, opset=made.opset, bytes=made.bytes)
        )
    return tuple(records)


def _report(recipe: Recipe, harness: Harness, done: Sequence[_Done], exports: tuple[ExportRecord, ...]) -> Report:
    exactness = [d.exactness for d in done if d.exactness is not None]
    return Report(
        method=recipe.method,
        verdict=_verdict(recipe, done[0].record, done[-1].record),
        seed=recipe.seed,
        environment=environment(),
        stages=tuple(d.record for d in done),
        exactness=max(exactness, key=lambda e: e.worst_abs / e.tolerance) if exactness else None,
        exports=exports,
        target=recipe.target,
        max_drop=recipe.max_drop,
        plan_sha256=done[-1].artifact.plan.digest,
        notes=tuple(dict.fromkeys(done[-1].artifact.notes)),
    )


def _verdict(recipe: Recipe, first: StageRecord, last: StageRecord) -> str:
    assert first.quality is not None and last.quality is not None
    lost = words.drop(first.quality, last.quality)
    if recipe.max_drop is not None and lost > recipe.max_drop:
        unit = "points" if last.quality.points == 100 else "units"
        return f"The result loses {lost:.2f} {unit} of {last.quality.metric}, more than --max-drop {recipe.max_drop:g} allows."
    speed = f"latency {last.latency.ratio:.2f}x ({last.latency.verdict})" if last.latency else "not timed"
    return (
        f"{first.params / last.params:.2f}x fewer parameters, {first.macs / last.macs:.2f}x fewer MACs, {speed}, "
        f"{last.quality.metric} {words.change(first.quality, last.quality)}."
    )


def _write(workspace: Workspace, result: Artifact, report: Report) -> None:
    try:
        save(result, workspace.out / "model.compressed")
    except UnsupportedModel as error:
        report = report.model_copy(update={"notes": (*report.notes, f"No model.compressed was written: {error}")})
    workspace.write("plan.json", replace(result.plan, method=report.method).to_json())
    workspace.write("report.json", report.to_json())
    workspace.write("report.md", markdown(report))


@contextmanager
def _failures(stage: str, done: Sequence[str]) -> Iterator[None]:
    """A crash inside a stage is told with what is kept; refusals pass as they are."""
    try:
        yield
    except (CompressError, exporters.ExportError, OSError):
        raise
    except Exception as error:
        raise StageFailed(stage, done, error) from error


@contextmanager
def _disk_errors(workspace: Workspace, done: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BadInput(
            f"{workspace.out} cannot be written ({error.strerror or error}). Make room there; "
            f"finished stages are kept ({', '.join(done) or 'none'}): add --resume to go on."
        ) from error
