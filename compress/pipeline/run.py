"""A run: stages in a row, each measured, each on disk when it is finished.

    model + data -> dense -> stage -> stage -> ... -> exports -> report

This is the one place that times, measures, saves, resumes and turns a stage's crash into an error that says what is kept.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from compress.artifact import Artifact
from compress.checkpoint.load import load
from compress.checkpoint.load.live_module import comes_back_otherwise
from compress.checkpoint.save import save
from compress.curves import CURVES, OBSERVED
from compress.edits import from_json
from compress.errors import (
    CompressError,
    CompressWarning,
    GateFailed,
    UnsupportedModel,
)
from compress.loggers.logged import Loggers, chosen, logged
from compress.pipeline import contract, doubts, measured_target
from compress.pipeline.crew import crew, follow, opened_by_all
from compress.pipeline.expected import Expected
from compress.pipeline.exports import Exports, export_all, lost_too_much
from compress.pipeline.failures import disk_errors, failures, interruptions
from compress.pipeline.final_report import report_of, write
from compress.pipeline.finished import SAID, finished
from compress.pipeline.given import NOTHING, Given
from compress.pipeline.harness import Harness
from compress.pipeline.latency_cache import LatencyCache
from compress.pipeline.rounding import with_widths_that_pay
from compress.pipeline.sequence import stages_of
from compress.pipeline.shared import Shared
from compress.pipeline.spent import Purse
from compress.pipeline.workspace import Workspace, open_workspace, refuse_taken
from compress.progress import Milestone, Progress, silent
from compress.ranks.team import Team
from compress.recipe import Recipe
from compress.report import sentences
from compress.report.records import Exactness, Outcome, Report, StageRecord
from compress.stage import Context, Stage
from compress.user import files
from exporters.atomic import sha256


@dataclass(frozen=True)
class _Done:
    """A finished stage."""

    artifact: Artifact
    record: StageRecord
    exactness: Exactness | None = None
    trained: bool = False


def run(recipe: Recipe, out: Path | str, **how: Any) -> Report:
    """The report of a run; the keywords, and what is raised, are those of `carry_out`."""
    return carry_out(recipe, out, **how)[0]


def carry_out(
    recipe: Recipe,
    out: Path | str,
    *,
    given: Given = NOTHING,
    resume: bool = False,
    force: bool = False,
    progress: Progress = silent,
    recipe_sha256: str | None = None,
    log: str | Sequence[str] = (),
    shared: Shared | None = None,
    nproc: int = 1,
) -> tuple[Report, Artifact]:
    """Carry out a recipe and write `out/`: its report, and the model that it ends with.

    Args:
        recipe: every setting.
        out: folder of the results.
        given: what stands in memory and not in the recipe.
        resume: go on with a run of the same recipe that was cut off.
        force: replace another run's results.
        progress: told what is being done.
        recipe_sha256: of the file that the recipe came from.
        log: trackers that the run is told to, as for `compress.run`.
        shared: model and data that are open already, and what other runs found out about them.
        nproc: processes that share the work.

    Raises:
        BadInput: a setting, file or folder that cannot be used.
        Infeasible: the target cannot be reached; nothing was done.
        UnsupportedModel: the model cannot be traced, or nothing can be removed.
        GateFailed: the result does not keep `max_drop`, or removal was not exact. Everything is on disk.
        StageFailed: a stage broke; finished ones are on disk.
        Interrupted: somebody stopped it; finished stages are on disk.
        ProcessLost: one of several processes ended; finished stages are on disk.
    """
    how: dict[str, Any] = {"recipe_sha256": recipe_sha256, "resume": resume, "force": force, "log": log, "shared": shared}
    with crew(nproc, recipe, given) as team:
        if team.ranks.number:
            return follow(team, recipe, given)
        team.introduce({"team": team})
        try:
            done = _carry_out(recipe, out, team, given, progress, **how)
        except CompressError as error:
            team.end(None, error)
            raise
        team.end(done, None)
        return done


def _carry_out(
    recipe: Recipe,
    out: Path | str,
    team: Team,
    given: Given,
    progress: Progress,
    *,
    recipe_sha256: str | None,
    resume: bool,
    force: bool,
    log: str | Sequence[str],
    shared: Shared | None,
) -> tuple[Report, Artifact]:
    files.spelled(Path(out))
    refuse_taken(Path(out), recipe, resume=resume, force=force)
    stages, (trackers, lacking), purse = stages_of(recipe), chosen(log), Purse()
    asides = (*lacking, *(comes_back_otherwise(given.model) if given.model is not None else ()))
    with purse.on("opening data and model"):
        opened = shared.for_run(recipe, progress) if shared else opened_by_all(team, recipe, progress, given, refusing=True)
    context, metric = replace(opened[0], team=team), opened[1]
    sums = {
        "recipe_sha256": recipe_sha256,
        "data_sha256": sha256(Path(recipe.data).expanduser()) if recipe.data.endswith(".toml") else None,
    }
    looked = contract if contract.wanted(recipe) else measured_target if measured_target.wanted(recipe) else None
    widest = replace(context, recipe=looked.widest(recipe)) if looked else context
    for stage in stages:
        stage.check(context.dense, widest)  # before anything slow, and before out/ is touched
    if shared is None:
        with purse.on("counting quality"):
            doubts.guessing(context, metric)  # for its refusal: what is no reason for one, the first row tells
    with (
        open_workspace(Path(out), recipe, resume=resume, force=force) as workspace,
        interruptions(workspace),
        logged(trackers, Path(out), recipe) as told,
    ):
        if looked:
            with purse.on("looking for a target"):
                recipe, note = looked.found(recipe, stages, context, metric, workspace)
            context = replace(context, recipe=recipe, dense=context.dense.noting(note))
        races = LatencyCache(recipe, context.device)
        known = shared and shared.dense
        harness = Harness(recipe, context.data, context.dense, context.device, metric, races, purse, known, team)
        running = _Run(workspace, harness, replace(context, race=races.race), told)
        before = finished(workspace) if resume else None
        running.every(stages)
        if shared:
            shared.dense = known or harness.measured(running.done[0].record, workspace.folder(0, "dense") / "model.onnx")
        if before is not None:
            progress(SAID, 1.0, "")
        report, remedy = _finished(running, sums, asides) if before is None else (before, running.with_last_kept(before)[1])
        if report.outcome is not Outcome.KEPT:
            raise GateFailed(f"{report.verdict} {workspace.out} {remedy}", report)
    return report, running.done[-1].artifact


def _finished(running: _Run, sums: Mapping[str, str | None], asides: Sequence[str]) -> tuple[Report, str]:
    """Exports and the report, and what a broken contract leaves."""
    recipe, workspace, result = running.harness.recipe, running.workspace, running.done[-1].artifact
    with disk_errors(workspace, running.names):
        running.context.progress("export", 0.0, ", ".join(recipe.export))
        dense = running.done[0].record.quality
        workspace.check()
        with running.harness.purse.on("exporting"):
            made = export_all(recipe, workspace.out, result, running.context.data, running.harness.quality_of, dense)
        workspace.check()  # exporters make the folder of a file where it is missing
        report, remedy = running.with_last_kept(running.report(made).model_copy(update=sums))
        beside = (*asides, *running.told.lost)
        report = report.model_copy(update={"warnings": (*report.warnings, *beside), "asides": beside})
        report = write(workspace, result, report)
        workspace.check()
    return report, remedy


@dataclass
class _Run:
    """The stages so far, and the places that they are measured with and written to."""

    workspace: Workspace
    harness: Harness
    context: Context
    told: Loggers
    done: list[_Done] = field(default_factory=list[_Done])

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
        known = replace(self.context, trained=trained[-1] if trained else None)

        def carry_out() -> Artifact:
            context = replace(known, scratch=self.workspace.scratch(number, stage.name))
            torch.manual_seed(self.context.recipe.seed * 1000 + number)  # a resumed stage draws what it would have drawn
            return with_widths_that_pay(stage, before, context, self.harness.recipe.align)

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
        self.told.stage(self.done[-1].record, self.done[-1].artifact.observed.trainings)

    def _resumed(self, name: str) -> _Done | None:
        number = len(self.done)
        facts, folder = self.workspace.facts(number, name), self.workspace.folder(number, name)
        if facts is None:
            return None
        # No model, but the stage changed nothing: that of the stage before.
        if (folder / "model.compressed").exists():
            module = load(folder / "model.compressed")
        elif facts["same"]:
            module = self._before.module
        else:
            return None  # its model could not be stored, so the stage is repeated
        if number == 0:
            self.harness.remember_dense(folder / "model.onnx")
        exactness = Exactness(**facts["exactness"]) if facts["exactness"] else None
        # What the first row warned of, when it was measured; the rest was told again as the data was opened.
        for said in facts.get("warnings", ()) if number == 0 else ():
            if said not in self.context.dense.warnings:
                warnings.warn(said, CompressWarning, stacklevel=2)
        artifact = Artifact(
            module,
            self.context.dense.inputs,
            from_json(facts["plan"]),
            tuple(facts["notes"]),
            tuple(facts.get("warnings", ())),
            CURVES.validate_python(facts["curves"]),
            # An older version, whose run is resumed, found none.
            OBSERVED.validate_python(facts.get("observed", {})),
        )
        return _Done(artifact, StageRecord(**facts["record"]), exactness)

    def _carried_out(self, name: str, carry_out: Callable[[], Artifact]) -> _Done:
        start = time.perf_counter()
        with self.harness.purse.on(name):
            artifact = carry_out()
        # Only the stage itself is timed, not what is measured of it.
        seconds = round(time.perf_counter() - start, 3)
        self.context.progress(f"measure {name}", 0.0, "")
        edits = artifact.plan.edits[len(self._before.plan.edits) :]
        with self.harness.purse.on("proving exactness"):
            exactness = self.harness.exactness(self._before, edits) if edits else None
        made: list[_Done] = []

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
            made.append(_Done(kept, record, exactness))
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
