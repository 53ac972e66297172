"""A run: stages in a row, each measured, each on disk when it is finished.

    model + data -> dense -> stage -> stage -> ... -> exports -> report

One process carries it out, or several (`crew`), of which the first does all that is not shared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compress.artifact import Artifact
from compress.checkpoint.load.live_module import comes_back_otherwise
from compress.errors import CompressError, GateFailed
from compress.loggers.logged import chosen, logged
from compress.measure import heap
from compress.pipeline import contract, doubts, measured_target
from compress.pipeline.crew import crew, follow, opened_by_all
from compress.pipeline.exports import export_all
from compress.pipeline.failures import disk_errors, interruptions
from compress.pipeline.final_report import write
from compress.pipeline.finished import SAID, finished
from compress.pipeline.given import NOTHING, Given
from compress.pipeline.harness import Harness
from compress.pipeline.latency_cache import LatencyCache
from compress.pipeline.profiling import FOLDER
from compress.pipeline.sequence import stages_of
from compress.pipeline.shared import Shared
from compress.pipeline.spent import Purse
from compress.pipeline.stepwise import Stepwise
from compress.pipeline.workspace import open_workspace, refuse_taken
from compress.progress import Progress, silent
from compress.ranks.team import Team
from compress.recipe import Recipe
from compress.report.records import Outcome, Report
from compress.user import files
from exporters.atomic import sha256


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
    profile: bool = False,
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
        profile: write into `out`/profile where the time of every part went, of this process.

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
    how["profile"] = profile
    with crew(nproc, recipe, given) as team:
        if team.ranks.number:
            with heap.kept(recipe.memory is None):
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
    profile: bool,
) -> tuple[Report, Artifact]:
    files.spelled(Path(out))
    refuse_taken(Path(out), recipe, resume=resume, force=force)
    stages, (trackers, lacking), purse = stages_of(recipe), chosen(log), Purse()
    asides = (*lacking, *(comes_back_otherwise(given.model) if given.model is not None else ()))
    with purse.on("opening data and model"), heap.kept(recipe.memory is None):
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
        if profile:
            context = replace(context, progress=purse.profiled(workspace.out / FOLDER, progress))
        if looked:
            with purse.on("looking for a target"):
                context, note = looked.found(recipe, stages, context, metric, workspace)
            recipe = context.recipe
            stages = stages_of(recipe)
            context = replace(context, dense=context.dense.noting(note))
        races = LatencyCache(recipe, context.device)
        known = shared and shared.dense
        timed = shared is None or shared.timed
        harness = Harness(recipe, context.data, context.dense, context.device, metric, races, purse, known, team, timed)
        running = Stepwise(workspace, harness, replace(context, race=races.race), told)
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


def _finished(running: Stepwise, sums: Mapping[str, str | None], asides: Sequence[str]) -> tuple[Report, str]:
    """Exports and the report, and what a broken contract leaves."""
    recipe, workspace, result = running.harness.recipe, running.workspace, running.done[-1].artifact
    with disk_errors(workspace, running.names):
        running.context.progress("export", 0.0, ", ".join(recipe.export))
        dense = running.done[0].record.quality
        workspace.check()
        with running.harness.purse.on("exporting"):
            made = export_all(running.context, workspace.out, result, running.harness.quality_of, dense)
        workspace.check()  # exporters make the folder of a file where it is missing
        report, remedy = running.with_last_kept(running.report(made).model_copy(update=sums))
        beside = (*asides, *running.told.lost)
        report = report.model_copy(update={"warnings": (*report.warnings, *beside), "asides": beside})
        report = write(workspace, result, report)
        workspace.check()
    return report, remedy
