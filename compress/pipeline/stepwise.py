"""The stages of a run, one after the other: each from disk where an earlier run finished it, else carried out, measured, written.

Here a stage's crash becomes an error that says what is kept.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from compress.artifact import Artifact
from compress.checkpoint.load import load
from compress.checkpoint.save import save
from compress.curves import CURVES, OBSERVED
from compress.errors import CompressWarning, UnsupportedModel
from compress.loggers.logged import Loggers
from compress.measure import heap
from compress.pipeline import doubts, stage_file
from compress.pipeline.expected import Expected
from compress.pipeline.exports import Exports, lost_too_much
from compress.pipeline.failures import disk_errors, failures
from compress.pipeline.final_report import report_of
from compress.pipeline.harness import Harness
from compress.pipeline.rounding import with_widths_that_pay
from compress.pipeline.workspace import Workspace
from compress.progress import Milestone
from compress.report import sentences
from compress.report.records import Exactness, Outcome, Report, StageRecord
from compress.stage import Context, Findings, Stage


@dataclass(frozen=True)
class Done:
    """A finished stage."""

    artifact: Artifact
    record: StageRecord
    exactness: Exactness | None = None
    trained: bool = False


@dataclass
class Stepwise:
    """The stages so far, and the places that they are measured with and written to."""

    workspace: Workspace
    harness: Harness
    context: Context
    told: Loggers
    done: list[Done] = field(default_factory=list[Done])
    _found: Findings = field(default_factory=Findings)
    """What stages have found out about the model as it is now."""

    def every(self, stages: Sequence[Stage]) -> None:
        """The model as it came, as the first row, then one stage after the other; each is told with what is still to come."""
        count, start = len(stages) + 2, time.perf_counter()
        self.context.progress(Milestone("dense", 1, count), 0.0, "")
        self._step("dense", lambda: self.context.dense)
        expected = Expected.of(stages, self.context, time.perf_counter() - start)
        for number, stage in enumerate(stages, 2):
            self.context.progress(Milestone(stage.name, number, count, expected.left), 0.0, "")
            start = time.perf_counter()
            self.stage(stage)
            expected.done(time.perf_counter() - start)
        self.context.progress(Milestone("export", count, count, expected.left), 0.0, "")

    def stage(self, stage: Stage) -> None:
        """One more stage: from disk where an earlier run finished it, else carried out, measured and written."""
        before, number = self.done[-1].artifact, len(self.done)
        # Fine-tuning goes on from the last trained model.
        trained = [d.artifact for d in self.done if d.trained]
        findings = self.context.findings or self._found
        known = replace(self.context, trained=trained[-1] if trained else None, findings=findings)

        def carry_out() -> Artifact:
            context = replace(known, scratch=self.workspace.scratch(number, stage.name))
            torch.manual_seed(self.context.recipe.seed * 1000 + number)  # a resumed stage draws what it would have drawn
            found = with_widths_that_pay(stage, before, context, self.harness.recipe.align)
            if found.module is not before.module:
                self._found = Findings()
            return found

        with failures(stage.name, self.names):
            self._step(stage.name, carry_out)
        self.done[-1] = replace(self.done[-1], trained=stage.traits.trains)

    @property
    def names(self) -> list[str]:
        """Finished stages."""
        return [d.record.stage for d in self.done]

    def report(self, made: Exports) -> Report:
        """Of all stages and the exports."""
        report = report_of(
            self.harness.recipe,
            [d.record for d in self.done],
            [d.exactness for d in self.done],
            (self.done[0].artifact, self.done[-1].artifact),
            made,
            self.context.data.spec.classes,
        )
        self.context.progress("measure in a large batch", 0.0, "")
        with self.harness.purse.on("timing"):
            large = self.harness.in_large_batch(self.done[-1].artifact, report.result.latency)
        return report.model_copy(update={"large_batch": large, "spent": self.harness.purse.told()})

    def with_last_kept(self, report: Report) -> tuple[Report, str]:
        """The report, and what a broken contract leaves: where a later stage broke it, with the model that still kept it."""
        remedy = sentences.KEPT_ALL_THE_SAME.get(report.outcome, "")
        records = [d.record for d in self.done]
        edited = [number for number, d in enumerate(self.done[:-1]) if d.artifact.plan.edits]
        dense, chance = records[0].quality, report.chance
        keeping = [n for n in edited if lost_too_much(self.harness.recipe, dense, records[n].quality, chance) is None]
        if report.outcome is not Outcome.QUALITY_LOST or not keeping:
            return report, remedy
        last = keeping[-1]
        said = sentences.kept_before(records, last)
        place = self.workspace.folder(last, records[last].stage) / "model.compressed"
        report = report.model_copy(update={"notes": (*report.notes, said)})
        return report, f"{remedy} {said}" + (f" Its model is {place}." if place.exists() else "")

    def _step(self, name: str, carry_out: Callable[[], Artifact]) -> None:
        with disk_errors(self.workspace, self.names):
            self.done.append(self._resumed(name) or self._carried_out(name, carry_out))
        if len(self.done) == 1:
            self.harness.remember_dense(self.workspace.folder(0, name) / "model.onnx")
        self.told.stage(self.done[-1].record, self.done[-1].artifact.observed.trainings)

    def _resumed(self, name: str) -> Done | None:
        number = len(self.done)
        folder = self.workspace.folder(number, name)
        facts = stage_file.read(folder, name, self.done[0].record if self.done else None)
        if facts is None:
            return None
        # No model, but the stage changed nothing: that of the stage before.
        if (folder / "model.compressed").exists():
            module = load(folder / "model.compressed")
        elif facts.same:
            module = self._before.module
        else:
            return None  # its model could not be stored, so the stage is repeated
        # What the first row warned of, when it was measured; the rest was told again as the data was opened.
        for said in facts.warnings if number == 0 else ():
            if said not in self.context.dense.warnings:
                warnings.warn(said, CompressWarning, stacklevel=2)
        artifact = Artifact(
            module,
            self.context.dense.inputs,
            facts.edits,
            facts.notes,
            facts.warnings,
            facts.curves,
            facts.observed,
        )
        return Done(artifact, facts.record, facts.exactness)

    def _carried_out(self, name: str, carry_out: Callable[[], Artifact]) -> Done:
        start = time.perf_counter()
        with self.harness.purse.on(name), heap.kept(self.harness.recipe.memory is None):
            artifact = carry_out()
        # Only the stage itself is timed, not what is measured of it.
        seconds = round(time.perf_counter() - start, 3)
        self.context.progress(f"measure {name}", 0.0, "")
        edits = artifact.plan.edits[len(self._before.plan.edits) :]
        with self.harness.purse.on("proving exactness"):
            exactness = self.harness.exactness(self._before, edits) if edits else None
        made: list[Done] = []

        def fill(folder: Path) -> dict[str, object]:
            same = artifact.module is self._before.module
            if same and self.done:  # the stage only looked: what was measured still holds
                record = self.done[-1].record.model_copy(update={"stage": name, "seconds": seconds})
            else:
                record = self.harness.record(artifact, name, seconds, folder)
            kept = artifact if same else _saved(artifact, name, folder)
            # What makes its quality doubtful is told once, at the first row.
            if not self.done:
                told = (
                    doubts.guesses(record.quality, self.context),
                    doubts.seen_in_training(self.context, self.harness.metric),
                )
                kept = functools.reduce(doubts.warned, filter(None, told), kept)
            made.append(Done(kept, record, exactness))
            facts = {"same": same, "record": record.model_dump(), "exactness": exactness and exactness.model_dump()}
            return {
                **facts,
                "plan": kept.plan.to_json(),
                "notes": list(kept.notes),
                "warnings": list(kept.warnings),
                "curves": CURVES.dump_python(kept.curves, mode="json"),
                "observed": OBSERVED.dump_python(kept.observed, mode="json"),
            }

        self.workspace.finish(len(self.done), name, fill)
        return made[0]

    @property
    def _before(self) -> Artifact:
        return self.done[-1].artifact if self.done else self.context.dense


def _saved(artifact: Artifact, stage: str, folder: Path) -> Artifact:
    """Write what `--resume` needs; the artifact says so where it cannot be written."""
    # A missing class-free form costs the resume, not the run.
    try:
        save(artifact, folder / "model.compressed")
        return artifact
    except UnsupportedModel as error:
        return artifact.noting(f"Stage '{stage}' left a model without a class-free form; a cut-off run repeats it: {error}")
