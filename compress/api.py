"""The commands as functions, with the same names and arguments: what the command line calls, and what a program calls instead.

Each returns plain data and prints nothing. Settings are keywords with the names of the fields of `Recipe`. A verb that needs more
than a few lines has a file of its own name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import exporters
from compress import artifact as artifacts
from compress.artifact import Artifact
from compress.checkpoint.load import load
from compress.checkpoint.save import save
from compress.commands.analyze import Row
from compress.commands.analyze import analyze as analysis
from compress.commands.bench import bench
from compress.commands.compare import compare
from compress.commands.demo import ARCH, make_demo
from compress.commands.diff import diff
from compress.commands.doctor import doctor
from compress.commands.explain import explain
from compress.commands.gate import gate
from compress.commands.methods import methods as methods
from compress.commands.methods_run import run_methods
from compress.commands.outputs import free, write_text
from compress.commands.package import package
from compress.commands.plan import Decision, decide
from compress.commands.probe import Probing
from compress.commands.probe import probe as probing
from compress.commands.sensitivity import Agreement, agreement
from compress.commands.verify import verify
from compress.edits import Plan, read
from compress.errors import BadInput
from compress.graph.trace.trace import trace
from compress.pipeline import exports
from compress.pipeline import run as pipeline
from compress.pipeline.latency_cache import LatencyCache
from compress.pipeline.prepare import opened, prepare
from compress.progress import Progress, silent
from compress.recipe import Recipe, from_toml, make, merged, model_path
from compress.report.comparison import Comparison
from compress.report.records import Report
from exporters.atomic import sha256

__all__ = [
    "analyze",
    "apply",
    "bench",
    "compare",
    "demo",
    "diff",
    "doctor",
    "explain",
    "export",
    "gate",
    "load",
    "methods",
    "package",
    "plan",
    "run",
    "save",
    "trace",
    "verify",
]

Place = str | Path

_OPENING = ("arch", "arch_kwargs", "trust_pickle", "trust_recipe", "weights_entry", "output", "input_shape", "data")
DEMO: dict[str, Any] = {"target": "params=0.25", "align": 8, "epochs": 5, "batch": 64}
"""What the demonstration asks for where nothing else is said."""


def run(
    model: Place | None = None,
    *,
    recipe: Recipe | Place | None = None,
    methods: str | Sequence[str] = (),
    out: Place = "out",
    dry_run: bool = False,
    resume: bool = False,
    force: bool = False,
    progress: Progress = silent,
    **settings: Any,
) -> Report | Decision | Comparison:
    """From a model file to a smaller, measured one in the folder `out`. `dry_run` decides, writes nothing and gives a `Decision`.

    With `methods` each of them has a run of its own, in a folder of its name, and what comes back compares them.

    Raises:
        CompressError: see `compress.errors`; each kind has its exit code.
        ExportError: the result cannot be exported, or the file is not equal to the model.
    """
    resolved = resolved_recipe(model, recipe, settings)
    if methods:
        names = methods.split(",") if isinstance(methods, str) else methods
        if dry_run or "method" in settings:
            raise BadInput(f"--methods does not go with {'--dry-run' if dry_run else '--method'}. Leave one of them out.")
        return run_methods(resolved, names, Path(out), resume=resume, force=force, progress=progress)
    if dry_run:
        return decide(resolved, progress)
    digest = sha256(Path(recipe)) if isinstance(recipe, str | Path) else None
    return pipeline.run(resolved, Path(out), resume=resume, force=force, progress=progress, recipe_sha256=digest)


def resolved_recipe(model: Place | None, recipe: Recipe | Place | None, settings: dict[str, Any]) -> Recipe:
    """One recipe out of a file or a recipe, a model, and settings that win over both."""
    if model is not None:
        settings = {"model": model_path(model), **settings}
    if isinstance(recipe, Recipe):
        resolved = merged(recipe.model_dump(), settings)
    else:
        resolved = make(**settings) if recipe is None else from_toml(Path(recipe), **settings)
    if not resolved.model:
        raise BadInput(
            "No model was given. Give a file, as in 'compress run model.pt --data images', or a --recipe that names one."
        )
    return resolved


def analyze(
    model: Place,
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
    context, _ = prepare(make(model=model_path(model), **settings), progress)
    if sensitivity:
        return agreement(context)
    if probe:
        return probing(context, None if made is None else artifacts.apply(made, context.dense))
    race = LatencyCache(context.recipe, context.device).race if timed else None
    return analysis(context.dense, replace(context, race=race), settings.get("spatial"))


def plan(
    model: Place,
    *,
    out: Place | None = "plan.json",
    apply_to: Place | None = None,
    force: bool = False,
    progress: Progress = silent,
    **settings: Any,
) -> Decision:
    """Decide which channels stay and which layers become one, and write that to `out` (None: nowhere).

    `apply_to` is another checkpoint of the same architecture; the plan is carried out on it, into the folder model.compressed.

    Raises:
        BadInput, Infeasible, UnsupportedModel: as for `run`.
        PlanMismatch: `apply_to` is another architecture.
    """
    result = Path("model.compressed")
    for path in (out, result if apply_to is not None else None):
        if path is not None:
            free(Path(path), force)
    recipe = make(model=model_path(model), **settings)
    decision = decide(recipe, progress, quick=False)
    if out is not None:
        write_text(Path(out), decision.plan.to_json())
    if apply_to is not None:
        loading = {name: value for name, value in settings.items() if name in _OPENING}
        apply(decision.plan, apply_to, out=result, force=force, **loading)
    return decision


def apply(plan: Place | Plan, model: Place, *, out: Place = "model.compressed", force: bool = False, **settings: Any) -> Artifact:
    """Carry out a plan on a model file and save the result as a folder that `load` opens.

    Raises:
        BadInput: a file cannot be read, or `out` exists and `force` is not given.
        PlanMismatch: the plan was made for another model.
    """
    made = plan if isinstance(plan, Plan) else read(Path(plan))
    free(Path(out), force)
    artifact, _ = opened(make(model=model_path(model), **settings))
    smaller = artifacts.apply(made, artifact)
    save(smaller, Path(out))
    return smaller


def export(
    model: Place, *, format: str = "onnx", out: Place | None = None, force: bool = False, **settings: Any
) -> exporters.Exported:
    """Write a model file in the format of another runtime, compared with torch on the same inputs: real ones where there is data.

    Without `out` the file is called model, with the ending of the format. 8 bits need `data` to calibrate on.

    Raises:
        BadInput: unknown format, the model cannot be opened, or `out` exists and `force` is not given.
        MissingBackend: what the format needs is not installed.
        ExportError: the model cannot be written in this format, or computes something else there.
    """
    if format not in exporters.EXPORTERS:
        raise BadInput(f"There is no format '{format}'; known are {', '.join(exporters.EXPORTERS)}. 'compress doctor' says more.")
    exporters.require(format)
    path = Path(out or f"model{exporters.ENDING[format]}")
    free(path, force)
    recipe = make(model=model_path(model), **settings)
    artifact, data = opened(recipe)
    return exports.write(format, artifact, path, recipe, data, {})


def demo(*, out: Place = "demo-out", force: bool = False, progress: Progress = silent, **settings: Any) -> Report:
    """Train a small net on scikit-learn's digits into `out`/model.pt (once), and compress it into `out`/run.

    Raises:
        BadInput: scikit-learn is missing, or `out`/run exists and `force` is not given.
    """
    folder = Path(out)
    if (folder / "run").exists() and not force:
        raise BadInput(f"{folder / 'run'} holds an earlier demonstration. Add --force to replace it, or give another --out.")
    if not (folder / "model.pt").exists():
        make_demo(folder, progress=progress)
    recipe = make(model=str(folder / "model.pt"), arch=ARCH, data="digits", **(DEMO | settings))
    return pipeline.run(recipe, folder / "run", force=force, progress=progress)
