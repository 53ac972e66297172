"""The formats of a run: each written, proven, and measured beside the model; one that fails leaves the others standing.

ONNX is written in this process, because everything else of a run needs it too. Other formats get a process of their own with an
end to its time and memory (exporters/isolated.py). Where a format has fewer bits than the model, the file itself answers the
whole test data.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

import exporters
from compress.artifact import Artifact
from compress.data import Data, DataSpec, Split
from compress.errors import CompressError
from compress.measure.points import drop
from compress.pipeline.answers import answers
from compress.recipe import Recipe
from compress.report import sentences
from compress.report.promise import kept
from compress.report.records import Broken, Closeness, ExportRecord, FailedExport, Outcome, Parity, QatRecord, Quality
from compress.stage import Context
from compress.training.qat import train_rounded, values
from exporters import isolated, qdq
from exporters.standalone import leftovers

PROOF_SAMPLES, PROOF_BYTES = 1000, 256_000_000
"""Real inputs that a file is compared on: a share of 99.9 % can be told, while large images stay affordable."""
CALIBRATION_SAMPLES = 256
"""Ranges of activations hardly move beyond this many images."""
QAT_FORMATS = ("onnx-int8", "onnx-int8-symmetric")
"""Formats whose rounding can stand in the training."""
_BATCH = 32


@dataclass(frozen=True)
class Exports:
    """What came of the formats that were asked for; `broken` is the first contract that a file does not keep."""

    records: tuple[ExportRecord, ...]
    failed: tuple[FailedExport, ...]
    broken: Broken | None = None


def export_all(
    context: Context,
    out: Path,
    result: Artifact,
    measure: Callable[[Callable[..., Tensor]], Quality],
    dense: Quality | None,
) -> Exports:
    """Write every format of the recipe into `out`.

    Args:
        context: formats and their settings in its recipe; training images to calibrate on, test images for the proof.
        out: folder of the results; the files are called model.ENDING.
        result: the model.
        measure: quality of a callable on the test data.
        dense: quality of the dense model, which `recipe.max_drop` counts from.

    Raises:
        ExportError: the main format, onnx, cannot be written or is not the model. Any other is a `FailedExport` instead.
    """
    recipe, data = context.recipe, context.data
    metadata = {"compress.plan_sha256": result.plan.digest, **_taken(data.spec)}
    records: list[ExportRecord] = []
    failed: list[FailedExport] = []
    broken: list[Broken] = []
    for name in recipe.export:
        path = out / f"model{exporters.ENDING[name]}"
        started = time.perf_counter()
        try:
            made = write(name, result, path, recipe, data, metadata)
        except exporters.ExportError as error:
            # The main format: without it there is nothing to ship, so the run ends.
            if name == "onnx":
                raise
            failed.append(FailedExport(format=name, reason=str(error)))
            # A file that is not the model breaks the contract; one that could not be written is only reported.
            if isinstance(error, exporters.ParityError):
                broken.append(Broken(outcome=Outcome.EXPORT_NOT_EQUAL, export=name, reason=str(error)))
            continue
        seconds = time.perf_counter() - started
        # The others are the model to 1e-4: their quality is that of the last stage.
        record = _record(made, measure(answers(name, path)) if name in exporters.LOSSY else None, seconds)
        if data.spec.task == "multilabel":  # the largest output says nothing of labels that may hold at once
            record = record.model_copy(update={"closeness": _without_classes(record.closeness)})
        # Only where rounding alone loses too much: training costs more than an export.
        if name in QAT_FORMATS and recipe.qat and _seems_to_lose(recipe, dense, record.quality):
            record = after_qat(record, result, path, context, metadata, measure)
        records.append(record)
        chance = sentences.chance_of(dense, data.spec.classes)
        if (contract := lost_too_much(recipe, dense, record.quality, chance, name)) is not None:
            broken.append(contract)
    return Exports(tuple(records), tuple(failed), broken[0] if broken else None)


def _taken(spec: DataSpec) -> dict[str, str]:
    """What the input is, for whom the file is all there is."""
    said = {"compress.mean": ",".join(map(str, spec.mean)), "compress.std": ",".join(map(str, spec.std))}
    made = spec.preparation
    if made is None:
        return said
    said["compress.preparation"] = " ".join(made.steps(spec.shape, spec.mean, spec.std))
    if made.origin == "items" or len(spec.shape) != 3:
        return said
    return said | {
        "compress.size": f"{spec.shape[1]},{spec.shape[2]}",
        "compress.color": made.color or "as in the arrays",
        "compress.resize": made.resize or "none",
        "compress.filter": made.filter or "none",
        "compress.orientation": "exif" if made.upright else "as stored",
    }


def write(
    name: str, of: Artifact, path: Path, recipe: Recipe, data: Data | None, metadata: Mapping[str, str]
) -> exporters.Exported:
    """One format of a model, compared on real inputs where there is data; in a process of its own unless it is ONNX."""
    options: dict[str, Any] = {
        "opset": recipe.opset,
        "calibration": [] if data is None else batches(data.train, min(recipe.calibration, CALIBRATION_SAMPLES), recipe.seed),
        "calibrator": recipe.calibrator,
        "int8_error": recipe.int8_error,
        "batch": recipe.batch,
    }
    samples = None if data is None else batches(data.test, PROOF_SAMPLES, recipe.seed)
    # The ONNX path is used by every stage and known to end; other converters may crash or hang.
    exporting = exporters.export if name == "onnx" else isolated.export
    return exporting(name, of.module, of.inputs, path, metadata=metadata, samples=samples, **options)


def after_qat(
    first: ExportRecord,
    of: Artifact,
    path: Path,
    context: Context,
    metadata: Mapping[str, str],
    measure: Callable[[Callable[..., Tensor]], Quality],
) -> ExportRecord:
    """The 8-bit file written again, after the model was trained with its rounding in place; the better of the two stays.

    Where training or the second export fails, the first file stays, and the record says why.

    Raises:
        CompressError: a training that several processes share failed, which are of no use then.
    """
    recipe, data = context.recipe, context.data
    started, name, before = time.perf_counter(), first.format, first.quality
    assert before is not None, "it has fewer bits than the model"
    seen = batches(data.train, min(recipe.calibration, CALIBRATION_SAMPLES), recipe.seed)
    # Ranges of the float model: the rounding stands where the file will have it.
    ranges = qdq.ranges(values(of.module, seen), recipe.calibrator)

    def told(**more: Any) -> QatRecord:
        seconds = round(time.perf_counter() - started, 3)
        return QatRecord(epochs=recipe.qat, before=before, seconds=seconds, **more)

    # Beside the target, so that the file moves into place within one file system.
    with tempfile.TemporaryDirectory(prefix=leftovers.hidden(path.name), dir=path.parent) as folder:
        try:
            module = context.together(train_rounded, of.module, ranges, name == "onnx-int8-symmetric", first.kept_float)
            made = write(name, replace(of, module=module), Path(folder, path.name), recipe, data, metadata)
        except (CompressError, exporters.ExportError) as error:
            if context.team.broken:
                raise
            return first.model_copy(update={"qat": told(reason=str(error))})
        after = measure(answers(name, made.path))
        # Training that made it worse is not used.
        if drop(before, after) > 0:
            return first.model_copy(update={"qat": told(after=after)})
        made.path.replace(path)
    done = told(after=after, stays=True)
    return _record(made, after, (first.seconds or 0.0) + done.seconds).model_copy(update={"qat": done})


def batches(split: Split, most: int, seed: int) -> list[tuple[Tensor, ...]]:
    """Inputs of up to `most` samples, fewer where they are large."""
    first = next(iter(split.batches(1, limit=1))).inputs
    fitting = PROOF_BYTES // max(sum(x.nbytes for x in first), 1)  # several inputs count together
    return [batch.inputs for batch in split.batches(_BATCH, limit=max(min(most, fitting), 1), seed=seed)]


def _without_classes(found: Closeness | None) -> Closeness | None:
    return found and found.model_copy(update={"agreement": None})


def _record(made: exporters.Exported, quality: Quality | None, seconds: float) -> ExportRecord:
    return ExportRecord(
        format=made.format,
        path=made.path.name,
        sha256=made.sha256,
        parity=made.parity and Parity(worst_abs=made.parity.worst_abs, tolerance=made.parity.tolerance),
        opset=made.opset,
        bytes=made.bytes,
        closeness=made.closeness and Closeness.model_validate(made.closeness, from_attributes=True),
        quality=quality,
        kept_float=made.kept_float,
        seconds=round(seconds, 3),
    )


def _seems_to_lose(recipe: Recipe, dense: Quality | None, now: Quality | None) -> bool:
    """By the figure alone: reason enough to train."""
    return recipe.max_drop is not None and dense is not None and now is not None and drop(dense, now) > recipe.max_drop


def lost_too_much(
    recipe: Recipe, dense: Quality | None, now: Quality | None, chance: float | None, export: str | None = None
) -> Broken | None:
    """The contract `--max-drop`, if the result, or an exported file, does not keep it; `chance` is the quality of guessing."""
    # What has no quality to compare cannot be judged, and keeps its contract.
    if recipe.max_drop is None or dense is None or now is None:
        return None
    found = kept(dense, now, recipe.max_drop, chance)
    if found.verdict == "pass" or (found.verdict == "cannot tell" and recipe.on_noise == "pass"):
        return None
    outcome = Outcome.QUALITY_LOST if export is None else Outcome.EXPORT_LOST_QUALITY
    reason = found.said(now.metric, recipe.max_drop) if found.verdict == "cannot tell" else ""
    return Broken(
        outcome=outcome,
        export=export,
        metric=now.metric,
        points=now.points,
        lost=found.lost,
        ci95=found.interval,
        allowed=recipe.max_drop,
        reason=reason,
    )


def undecided(recipe: Recipe, dense: Quality | None, now: Quality | None, chance: float | None) -> tuple[str, ...]:
    """What has to be said where the test data cannot tell whether `--max-drop` is kept."""
    if recipe.max_drop is None or dense is None or now is None:
        return ()
    found = kept(dense, now, recipe.max_drop, chance)
    return (found.said(now.metric, recipe.max_drop),) if found.verdict == "cannot tell" else ()
