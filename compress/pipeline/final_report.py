"""From the stages of a run to its report, and to the files that show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from compress.artifact import Artifact
from compress.checkpoint.save import save
from compress.errors import UnsupportedModel
from compress.measure.asked import parse_target
from compress.pipeline.exports import Exports, lost_too_much, undecided
from compress.pipeline.layer_records import layer_records, staying
from compress.pipeline.rounding import advised
from compress.pipeline.sequence import stages_of
from compress.pipeline.workspace import Workspace
from compress.recipe import Recipe
from compress.report import sentences
from compress.report.comparison import CLOSE
from compress.report.environment import environment
from compress.report.html import PAGE
from compress.report.html.page import page_of
from compress.report.markdown import markdown
from compress.report.pictures import draw
from compress.report.records import Broken, Exactness, Outcome, Report, StageRecord


def report_of(
    recipe: Recipe,
    stages: Sequence[StageRecord],
    proofs: Sequence[Exactness | None],
    models: tuple[Artifact, Artifact],
    made: Exports,
    classes: Sequence[str] | None,
) -> Report:
    """The report of a run whose exports are made.

    Args:
        recipe: of the run.
        stages: the dense model first.
        proofs: what each stage was found to be exact by, in the same order.
        models: the dense one and the result.
        made: the exports.
        classes: their names, where the data has some.
    """
    dense, result = models
    exactness = [one for one in proofs if one is not None]
    worst = max(exactness, key=lambda e: e.worst_abs / e.tolerance) if exactness else None
    first, last = stages[0].quality, stages[-1].quality
    chance = sentences.chance_of(first, classes)
    doubts = undecided(recipe, first, last, chance)
    # In this order: an inexact model makes every number after it meaningless.
    broken = _inexact(worst) or lost_too_much(recipe, first, last, chance) or made.broken
    return Report(
        method=recipe.method,
        outcome=Outcome.KEPT if broken is None else broken.outcome,
        broken=broken,
        verdict=sentences.reached(stages[0], stages[-1], chance, bool(result.warnings or doubts))
        if broken is None
        else sentences.broken(broken),
        seed=recipe.seed,
        environment=environment(),
        stages=tuple(stages),
        exactness=worst,
        exports=made.records,
        failed_exports=made.failed,
        target=recipe.target,
        max_drop=recipe.max_drop,
        undecided=bool(doubts),
        plan_sha256=result.plan.digest,
        warnings=tuple(dict.fromkeys((*result.warnings, *doubts))),
        notes=tuple(dict.fromkeys((*advised(result).notes, *further(recipe.target, stages)))),
        curves=result.curves,
        chance=chance,
        layers=layer_records(dense, result),
        stays=staying(dense) if any("depth" in stage.traits.removes for stage in stages_of(recipe)) else (),
        activations=result.observed.activations,
        trainings=result.observed.trainings,
    )


def further(target: str | None, stages: Sequence[StageRecord]) -> tuple[str, ...]:
    """What to say where the target was met, and later stages took away more: merged layers do."""
    unit, asked = parse_target(target) if target else ("", 1.0)
    if unit not in ("params", "macs"):
        return ()
    left = [getattr(stage, unit) / getattr(stages[0], unit) for stage in stages]
    met = next((number for number, share in enumerate(left) if share <= asked * (1 + CLOSE)), None)
    if met is None or left[-1] > left[met] * (1 - CLOSE) or left[-1] > asked * (1 - CLOSE):
        return ()
    after = [stages[n].stage for n in range(met + 1, len(stages)) if left[n] < left[n - 1]]
    return (
        f"The target {target} was met by {stages[met].stage}, and {' and '.join(after)} took the model on to "
        f"{unit}={left[-1]:.3g}. A larger --target keeps more channels.",
    )


def _inexact(worst: Exactness | None) -> Broken | None:
    if worst is None or worst.holds:
        return None
    return Broken(outcome=Outcome.NOT_EXACT, lost=worst.worst_abs, allowed=worst.tolerance)


def write(workspace: Workspace, result: Artifact, report: Report) -> Report:
    """The model, the plan and the report, with what could not be written."""
    try:
        save(result, workspace.out / "model.compressed")
    except UnsupportedModel as error:
        said = f"No model.compressed was written: {error} {sentences.WITHOUT_CHECKPOINT}"
        report = report.model_copy(update={"notes": (*report.notes, said)})
    workspace.write("plan.json", replace(result.plan, method=report.method).to_json())
    report = draw(report, workspace.out / "pictures")
    workspace.write("report.json", report.to_json())
    workspace.write("report.md", markdown(report))
    # From what lies in the folder, as 'compress report' makes it again later.
    workspace.write(PAGE, page_of(workspace.out))
    return report
