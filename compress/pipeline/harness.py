"""The one harness behind every row of the report: cost, file, latency beside the dense model, quality on the test data."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from compress.artifact import Artifact, apply, runs
from compress.data import Data
from compress.edits import Edit, Factor, Keep, Merge, Plan
from compress.graph.surgery import remove
from compress.measure import quality
from compress.measure.drop import drop_interval
from compress.measure.latency import Timing
from compress.measure.runtime import threads_of
from compress.pipeline.answers import counted, quickest
from compress.pipeline.latency_cache import LatencyCache
from compress.pipeline.spent import Purse
from compress.ranks.team import ONE, Team
from compress.recipe import Recipe
from compress.report.records import Exactness, Latency, StageRecord
from compress.report.records import Quality as QualityRecord
from exporters.atomic import total_bytes

PROOF_SAMPLES = 64
EXACT_RTOL = 1e-4
_FAR = torch.finfo(torch.float32).max
"""Removed and masked models sum the same numbers in another order, and a merged layer rounds its weights once more: fp32 leaves
about 1e-7 per layer of the largest output, a few times that where large numbers cancel."""

LARGE_CALL_MS, LEAST_BATCH, MOST_BATCH, LARGE_ROUNDS = 100.0, 8, 32, 12
"""A large batch keeps the dense model busy for about so long, within these sizes; of such long calls fewer rounds are enough."""


@dataclass(frozen=True)
class Measured:
    """The dense model, as a run measured it: its row, the answers that were counted, and its ONNX file."""

    record: StageRecord
    counted: quality.Counted
    file: Path


@dataclass
class Harness:
    """Measures every stage of a run the same way. Keeps the file of the dense model, which each stage is timed against.

    `known` is the dense model as another run of the same model and data measured it: then it is not measured again. Rows have no
    times where `timed` is False.
    """

    recipe: Recipe
    data: Data
    dense: Artifact
    device: torch.device
    metric: quality.Metric
    races: LatencyCache
    purse: Purse = field(default_factory=Purse)
    known: Measured | None = None
    team: Team = ONE
    timed: bool = True
    _dense_counted: quality.Counted | None = field(default=None, init=False)
    _dense_file: Path | None = field(default=None, init=False)

    def inputs(self, batch: int) -> tuple[Tensor, ...]:
        """Real inputs, repeated where the data has fewer."""
        found = next(iter(self.data.test.batches(batch))).inputs
        # Repeated and not cut off: the batch that is timed is the one that was asked for.
        return tuple(x[torch.arange(batch) % len(x)] for x in found)

    def samples(self) -> Iterable[tuple[Tensor, ...]]:
        """Real inputs for proofs, in batches."""
        return (b.inputs for b in itertools.islice(self.data.test.batches(PROOF_SAMPLES // 2), 2))

    def record(self, artifact: Artifact, stage: str, seconds: float, folder: Path) -> StageRecord:
        """Measure a model; leaves `model.onnx` in `folder`. The first call is for the dense model."""
        path = folder / "model.onnx"
        if artifact.module is self.dense.module and self.known is not None and self.known.file.exists():
            shutil.copyfile(self.known.file, path)
            self._dense_counted = self.known.counted
            self.remember_dense(path)
            return self.known.record
        # To be timed, and to count quality with; only the final export is compared with the model.
        self.races.write(artifact, path)
        spent = artifact.cost
        with self.purse.on("timing"):
            latency = self._latency(artifact, stage, path) if self.timed else None
        with self.purse.on("counting quality"):
            found = self._quality(artifact, path)
        return StageRecord(
            stage=stage,
            params=spent.params,
            macs=spent.macs,
            file_bytes=total_bytes(path),
            peak_memory_bytes=spent.peak_memory_bytes(self.recipe.batch),
            latency=latency,
            quality=found,
            seconds=round(seconds, 3),
        )

    def exactness(self, before: Artifact, edits: Sequence[Edit]) -> Exactness | None:
        """Removed against masked and merged against unmerged, on real inputs, before any weight was refitted.

        None where the edits are of other kinds: linearized activations and moved padding change the model on purpose.
        """
        found = [self._apart(*pair) for pair in _pairs(before, edits)]
        # The worst by its own tolerance: pairs may have outputs of different scale.
        return max(found, key=lambda e: e.worst_abs / e.tolerance, default=None)

    def _apart(self, changed: Module, reference: Module) -> Exactness:
        """How far two models are apart that have to compute the same."""
        worst, largest, samples = 0.0, 0.0, 0
        pair = [copy.deepcopy(m).to(self.device).eval() for m in (changed, reference)]  # the artifacts stay where they are
        with torch.no_grad():
            for batch in self.samples():
                one, other = (quality.first_output(m(*(x.to(self.device) for x in batch))) for m in pair)
                # Infinite on both sides is equal; on one alone it is as far apart as numbers go.
                apart = torch.where(one == other, 0.0, (one - other).abs()).nan_to_num(nan=_FAR, posinf=_FAR)
                worst = max(worst, float(apart.max()))
                largest = max(largest, float(torch.where(other.isfinite(), other.abs(), 0.0).max()))
                samples += len(one)
        # Relative to the largest output; 1e-3 keeps a model of zeros from a tolerance of 0.
        return Exactness(worst_abs=worst, tolerance=EXACT_RTOL * max(largest, 1e-3), samples=samples)

    def remember_dense(self, path: Path) -> None:
        """Where the dense model's file lies, which every later stage is timed against."""
        self._dense_file = path

    def measured(self, record: StageRecord, file: Path) -> Measured | None:
        """What another run of this model needs not measure again; None where this one has counted no answers of it."""
        return Measured(record, self._dense_counted, file) if self._dense_counted and file.exists() else None

    def _run(self, artifact: Artifact, path: Path) -> Callable[[], object]:
        return self.races.runner(artifact, path, self.inputs(self.recipe.batch))

    def _latency(self, artifact: Artifact, stage: str, path: Path) -> Latency:
        if self.recipe.on is not None:
            return self._there(artifact)
        # The dense model raced against itself would be a race of one: it has no ratio.
        files = {"dense": (self.dense, self._dense_file or path)}
        if artifact.module is not self.dense.module:
            files[stage] = (artifact, path)
        timings = self.races.in_sessions(lambda: {name: self._run(*one) for name, one in files.items()}, "dense")
        found = self._of(timings[stage if len(files) > 1 else "dense"], self.recipe.batch)
        return found.model_copy(update={"dense_rounds_ms": _figures(timings["dense"].rounds_ms)}) if len(files) > 1 else found

    def _there(self, artifact: Artifact) -> Latency:
        """On the device of the recipe, where two files are timed at a time."""
        timing = self.races.race(artifact, self.dense)
        if artifact.module is self.dense.module:
            timing = dataclasses.replace(timing, ratio=1.0, ci95=(1.0, 1.0))
        return self._of(timing, self.recipe.batch)

    def in_large_batch(self, artifact: Artifact, alone: Latency | None) -> Latency | None:
        """Latency of the result where many samples come at once: what is faster one by one is often less so there.

        Args:
            artifact: the result.
            alone: its latency as the run timed it.

        Returns:
            None where that was in such batches, where nothing was timed, or nothing was changed.
        """
        if alone is None or artifact.module is self.dense.module:
            return None
        one = alone.p50_ms * alone.ratio / alone.batch  # milliseconds of the dense model
        batch = min(max(2 ** int(math.log2(max(LARGE_CALL_MS / one, 1))), LEAST_BATCH), MOST_BATCH)
        if batch <= alone.batch:
            return None
        rounds = min(self.recipe.rounds, LARGE_ROUNDS)
        races = LatencyCache(self.recipe.model_copy(update={"batch": batch, "rounds": rounds}), self.device)
        return self._of(races.race(artifact, self.dense), batch)

    def _of(self, timing: Timing, batch: int) -> Latency:
        return Latency(
            runtime=self.races.runtime,
            batch=batch,
            threads=threads_of(self.recipe.threads) if self.recipe.on is None else self.recipe.threads,
            p50_ms=timing.p50_ms,
            ratio=timing.ratio,
            ci95=timing.ci95,
            p50_ci95_ms=timing.p50_ci95_ms,
            noisy=timing.noisy,
            calm=round(timing.calm, 4),
            rounds_ms=_figures(timing.rounds_ms),
        )

    def _quality(self, artifact: Artifact, path: Path) -> QualityRecord:
        counted = self._counted(artifact, path)
        # By identity: a stage that only looked hands the same module on.
        if artifact.module is self.dense.module:
            self._dense_counted = counted
        return self._finished(counted)

    def _finished(self, counted: quality.Counted) -> QualityRecord:
        # A resumed run has not counted it yet.
        self._dense_counted = self._dense_counted or self._counted(self.dense, self._dense_file)
        found = quality.finished(counted, self.metric)
        drop = None if counted is self._dense_counted else drop_interval(self.metric, self._dense_counted, counted)
        return QualityRecord(**dataclasses.asdict(found), drop_ci95=drop)

    def quality_of(self, answer: Callable[..., Tensor]) -> QualityRecord:
        """Quality of anything that answers like the model, such as an exported file in its runtime."""
        return self._finished(self._count(answer))

    def _counted(self, artifact: Artifact, path: Path | None) -> quality.Counted:
        threads = self.team.threads
        return self._count(artifact.module if path is None else quickest(artifact, path, self.device, self.samples(), threads))

    def _count(self, answer: Callable[..., Any]) -> quality.Counted:
        return self.team.call(counted, (answer, self.data.test, self.metric, self.device, self.dense.module))


def _figures(rounds: tuple[float, ...]) -> tuple[float, ...]:
    """Five figures of each are more than a clock tells, and keep the report small."""
    return tuple(float(f"{one:.5g}") for one in rounds)


def _pairs(before: Artifact, edits: Sequence[Edit]) -> Iterator[tuple[Module, Module]]:
    """Models that have to compute the same, one pair for each run of edits that may change nothing."""
    every = list(runs(edits))
    for number, run in enumerate(every, 1):
        removed, merges = [edit for edit in run if isinstance(edit, Keep)], isinstance(run[0], Merge | Factor)
        # Only removals are compared with masking; linearized activations change the model on purpose.
        if removed:
            channels = before.channels
            yield remove.keep(before.module, channels, removed), remove.mask(before.module, channels, removed)
        # The next run of edits is compared with the model that this one leaves.
        after = apply(Plan(run), before) if merges or number < len(every) else before
        if merges:
            yield after.module, before.module
        before = after
