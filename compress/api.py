"""The commands as functions, with the same names and arguments: what the command line calls, and what a program calls instead.

Each returns plain data and prints nothing. Settings are keywords named like the fields of `Recipe`.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import torch
from torch import nn

from compress import artifact as artifacts
from compress.artifact import Artifact
from compress.checkpoint.load import load
from compress.commands.analyze import Row
from compress.commands.analyze import analyze as analysis
from compress.commands.bench import bench
from compress.commands.compare import compare
from compress.commands.demo import demo
from compress.commands.detector import detector
from compress.commands.detector_input import context_of_any
from compress.commands.diff import diff
from compress.commands.doctor import doctor
from compress.commands.explain import explain
from compress.commands.export import export
from compress.commands.finetune import finetune
from compress.commands.gate import gate
from compress.commands.init import init
from compress.commands.methods import methods as methods
from compress.commands.methods_run import run_methods
from compress.commands.outputs import apart, free, write_text
from compress.commands.package import package
from compress.commands.plan import Decision, decide
from compress.commands.probe import Probing
from compress.commands.probe import probe as probing
from compress.commands.push import push
from compress.commands.report_page import report_page
from compress.commands.save import save
from compress.commands.sensitivity import Agreement, agreement
from compress.commands.steps import edit, follow, linearize, merge, quantize, reconstruct, remove
from compress.commands.tune import tune
from compress.commands.verify import verify
from compress.edits import Plan, read
from compress.errors import BadInput
from compress.graph.trace.trace import trace
from compress.keywords import Settings, Unplanned, with_settings
from compress.pipeline import run as pipeline
from compress.pipeline.begun_with import files_of
from compress.pipeline.given import device_of, resolved_recipe
from compress.pipeline.latency_cache import LatencyCache
from compress.pipeline.prepare import opened
from compress.pipeline.result import Result, new_folder, result
from compress.progress import Progress, silent
from compress.recipe import Recipe
from compress.report.comparison import Comparison
from compress.report.records import Report
from compress.user import files
from exporters.atomic import sha256

__all__ = [
    "analyze",
    "apply",
    "bench",
    "compare",
    "demo",
    "detector",
    "diff",
    "doctor",
    "edit",
    "explain",
    "export",
    "finetune",
    "follow",
    "gate",
    "init",
    "linearize",
    "load",
    "merge",
    "methods",
    "package",
    "plan",
    "push",
    "quantize",
    "reconstruct",
    "remove",
    "report_page",
    "run",
    "save",
    "trace",
    "tune",
    "verify",
]

Place = str | Path
OUT, PLAN = Path("out"), Path("plan.json")
"""Where results are written that nobody gave another place; of a module in memory they are not (`run`, `plan`)."""

_OPENING = ("arch", "arch_kwargs", "trust_pickle", "trust_recipe", "weights_entry", "output", "input_shape", "data")


@overload
def run(
    model: nn.Module,
    *,
    recipe: Recipe | Place | None = None,
    methods: tuple[()] = (),
    out: Place = OUT,
    dry_run: Literal[False] = False,
    resume: bool = False,
    force: bool = False,
    log: str | Sequence[str] = (),
    nproc: int = 1,
    profile: bool = False,
    progress: Progress = silent,
    **settings: Unpack[Settings],
) -> Result: ...
@overload
def run(
    model: Place | None = None,
    *,
    recipe: Recipe | Place | None = None,
    methods: tuple[()] = (),
    out: Place = OUT,
    dry_run: Literal[False] = False,
    resume: bool = False,
    force: bool = False,
    log: str | Sequence[str] = (),
    nproc: int = 1,
    profile: bool = False,
    progress: Progress = silent,
    **settings: Unpack[Settings],
) -> Report: ...
@overload
def run(
    model: nn.Module | Place | None = None,
    *,
    dry_run: Literal[True],
    recipe: Recipe | Place | None = None,
    progress: Progress = silent,
    **settings: Unpack[Settings],
) -> Decision: ...
@overload
def run(
    model: nn.Module | Place | None = None,
    *,
    methods: str | Sequence[str],
    recipe: Recipe | Place | None = None,
    out: Place = OUT,
    resume: bool = False,
    force: bool = False,
    log: str | Sequence[str] = (),
    progress: Progress = silent,
    **settings: Unpack[Settings],
) -> Comparison: ...
@with_settings
def run(
    model: nn.Module | Place | None = None,
    *,
    recipe: Recipe | Place | None = None,
    methods: str | Sequence[str] = (),
    out: Place = OUT,
    dry_run: bool = False,
    resume: bool = False,
    force: bool = False,
    log: str | Sequence[str] = (),
    nproc: int = 1,
    profile: bool = False,
    progress: Progress = silent,
    **settings: Any,
) -> Result | Report | Decision | Comparison:
    """From a model, in memory or in a file, to a smaller, measured one in the folder `out`.

    A module gives a `Result` with the smaller module, and is not changed itself; without `out` a new temporary folder is taken,
    which `result.out` names. A file gives the `Report` alone. `dry_run` decides, writes nothing and gives a `Decision`. With
    `methods` each has a run in a folder of its name, and what comes back compares them. `log` names trackers that are told every
    stage and the report (tensorboard, mlflow, wandb, trackio); their files are in `out`/trackers, those of
    `profile` in `out`/profile.

    Raises:
        CompressError: see `compress.errors`; each kind has its exit code.
        ExportError: the result cannot be exported, or the file is not equal to the model.
    """
    resolved, given = resolved_recipe(model, recipe, settings)
    if methods and (dry_run or "method" in settings):
        raise BadInput(f"--methods does not go with {'--dry-run' if dry_run else '--method'}. Leave one of them out.")
    if resume and (force or dry_run):
        other = "--force throws it away" if force else "--dry-run carries nothing out"
        raise BadInput(f"--resume goes on with what is there, and {other}. Leave one of them out.")
    if (nproc != 1 or profile) and (dry_run or methods):
        flags = "--nproc" if nproc != 1 else "--profile", "--dry-run" if dry_run else "--methods"
        raise BadInput(f"{flags[0]} does not go with {flags[1]}. Leave one of them out.")
    if dry_run:
        return decide(resolved, progress, given=given)
    how: dict[str, Any] = {"given": given, "resume": resume, "force": force, "progress": progress, "log": log}
    if not str(out):
        raise BadInput("--out is empty; needed is the name of a folder. Give one, or nothing for the folder out.")
    place = new_folder() if given.model is not None and out is OUT else nullcontext(Path(out))
    # A run sets the seed for every stage: the caller goes on drawing as before.
    with place as folder, torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        if methods:
            return run_methods(resolved, methods.split(",") if isinstance(methods, str) else methods, folder, **how)
        digest = sha256(Path(recipe)) if isinstance(recipe, str | Path) else None
        report, artifact = pipeline.carry_out(resolved, folder, recipe_sha256=digest, nproc=nproc, profile=profile, **how)
        return report if given.model is None else result(report, artifact, folder, device_of(given.model))


@overload
def analyze(
    model: nn.Module | Place,
    *,
    timed: bool = True,
    probe: Literal[False] = False,
    sensitivity: Literal[False] = False,
    progress: Progress = silent,
    **settings: Unpack[Unplanned],
) -> list[Row]: ...
@overload
def analyze(
    model: nn.Module | Place,
    *,
    probe: Literal[True],
    plan: Place | Plan | None = None,
    progress: Progress = silent,
    **settings: Unpack[Unplanned],
) -> Probing: ...
@overload
def analyze(
    model: nn.Module | Place, *, sensitivity: Literal[True], progress: Progress = silent, **settings: Unpack[Unplanned]
) -> list[Agreement]: ...
@with_settings
def analyze(
    model: nn.Module | Place,
    *,
    timed: bool = True,
    probe: bool = False,
    plan: Place | Plan | None = None,
    sensitivity: bool = False,
    progress: Progress = silent,
    **settings: Any,
) -> list[Row] | list[Agreement] | Probing:
    """Entropy, redundancy, cost and savings of every group of channels, from one pass over `calibration` training images.

    With `timed`, the layers around each activation race against the one that they could become without it. With `spatial` among
    the settings, the spatial entropy of the layers' maps is there, too, by that definition.
    Instead of all that: with `probe` where the model loses its input, and with a `plan` what that loses beside it; with
    `sensitivity` whether trainings from the same and from other initial weights find the same weights important.

    Raises:
        BadInput: the model, the data or the plan cannot be used.
        PlanMismatch: the plan was made for another model.
        UnsupportedModel: the model cannot be traced, or has nothing to probe.
    """
    if plan is not None and not probe:
        raise BadInput("--plan is only looked at by the probe. Add --probe, or leave --plan out.")
    made = read(Path(plan)) if isinstance(plan, str | Path) else plan
    context = context_of_any(model, settings, progress, parts=not (sensitivity or probe))
    if sensitivity:
        return agreement(context)
    if probe:
        return probing(context, None if made is None else artifacts.apply(made, context.dense))
    race = LatencyCache(context.recipe, context.device).race if timed else None
    return analysis(context.dense, replace(context, race=race), settings.get("spatial"))


@with_settings
def plan(
    model: nn.Module | Place,
    *,
    out: Place | None = PLAN,
    apply_to: Place | None = None,
    force: bool = False,
    progress: Progress = silent,
    **settings: Unpack[Settings],
) -> Decision:
    """Decide which channels stay and which layers become one, and write that to `out` (None: nowhere).

    Of a module in memory nothing is written unless `out` is given; the plan is in the `Decision`.
    `apply_to` is another checkpoint of the same architecture; the plan is carried out on it, into the folder model.compressed.

    Raises:
        BadInput, Infeasible, UnsupportedModel: as for `run`.
        PlanMismatch: `apply_to` is another architecture.
    """
    out = None if isinstance(model, nn.Module) and out is PLAN else out
    carried_out = Path("model.compressed")
    for path in filter(None, (out, carried_out if apply_to is not None else None)):
        free(Path(path), force, None if isinstance(model, nn.Module) else model, apply_to)
    if out is not None and apply_to is not None and files.among(out, [carried_out]):
        raise BadInput(f"--out {out} is where the smaller model goes. Give the plan another --out.")
    recipe, given = resolved_recipe(model, None, settings)
    if out is not None:
        apart(Path(out), *files_of(recipe))
    decision = decide(recipe, progress, quick=False, given=given)
    if out is not None:
        write_text(Path(out), decision.plan.to_json())
    if apply_to is not None:
        loading: Any = {name: value for name, value in settings.items() if name in _OPENING}
        apply(decision.plan, apply_to, out=carried_out, force=force, **loading)
    return decision


@with_settings
def apply(
    plan: Place | Plan,
    model: nn.Module | Place,
    *,
    out: Place = "model.compressed",
    force: bool = False,
    **settings: Unpack[Unplanned],
) -> Artifact:
    """Carry out a plan on a model and save the result as a folder that `load` opens.

    Raises:
        BadInput: a file cannot be read, or `out` exists and `force` is not given.
        PlanMismatch: the plan was made for another model.
    """
    made = plan if isinstance(plan, Plan) else read(Path(plan))
    free(Path(out), force, plan, model)
    smaller = artifacts.apply(made, opened(*resolved_recipe(model, None, settings))[0])
    save(smaller, Path(out))
    return smaller
