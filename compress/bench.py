"""`compress bench`: model files timed in turns, in one runtime or in several.

Candidates are models x runtimes x batch sizes x threads. Those of one batch size and number of threads run in turns, each in a
process of its own (`measure.turns`), and are compared with the first. torch's eager mode and CUDA run in this process
(`measure.latency`).
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import exporters
from compress.errors import BadInput, CompressError
from compress.load import open_artifact, parse_shape
from compress.measure import runtime, turns
from compress.measure.latency import Timing, compare
from compress.measure.turns import Candidate, Figures
from compress.opening import opened
from compress.recipe import Recipe, make
from compress.stage import Progress
from exporters import apart, runtimes

WRITES = {"ort": "onnx", "openvino": "onnx", "executorch": "executorch", "torch": "pt2"}
"""Runtime -> the format that a torch model is written in for it."""
Tell = Progress | None
IN_PROCESS = ("torch", "ort-cuda")
EXPORTED = tuple({ending for endings in runtimes.OPENS.values() for ending in endings})
ENGINES = (".engine", ".plan")


class Unsteady(CompressError):
    """Figures that scatter too much for any claim."""


class _Unfit(Exception):
    """A model that a runtime does not take, and why."""


def bench(
    *models: str | Path,
    runtime: str | Sequence[str] = "auto",
    batch: int | str | Sequence[int] = 1,
    threads: int | str | Sequence[int] = 0,
    cpu: str | Sequence[int] = (),
    strict: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> dict[str, Figures]:
    """Latency of several model files, timed in turns; each is compared with the first of its batch size and threads.

    A file runs in the runtimes that are named, as far as they open it; with `auto` in the one that it was made for. A torch
    model is exported to a temporary file first, except for `runtime="torch"` alone. `batch` and `threads` may be several
    ("1,32"), `cpu` names cores to pin to ("2,3"). An input size that is not given is that of the first file that knows its own.

    Raises:
        BadInput: no model, a model that cannot be opened, or nothing that runs in any of the runtimes.
        Unsteady: `strict`, and the rounds of a candidate scatter too much for any claim.
    """
    if not models:
        raise BadInput("No model was given. Give at least one file; the first one is what the others are compared with.")
    names = list(dict.fromkeys(map(str, models)))
    wanted = chosen(runtime)
    sizes, counts = numbers("batch", batch, 1), numbers("threads", threads, 0)
    recipes = resolved(names, settings | {"runtime": wanted[0] if wanted[0] in IN_PROCESS else "ort"}, sizes[0], counts[0])
    if wanted[0] in IN_PROCESS:
        found = in_process(recipes, wanted[0], progress)
    else:
        cores = numbers("cpu", cpu, 0) if cpu else []
        with tempfile.TemporaryDirectory() as folder:
            files = _Files(recipes, Path(folder), progress)
            found = in_turns(files, wanted, sizes, counts, cores, progress)
    if strict:
        steady(found.values())
    return found


def chosen(asked: str | Sequence[str]) -> tuple[str, ...]:
    """Runtimes by name.

    Raises:
        BadInput: an unknown one, or one that only works alone beside others.
    """
    names = tuple(dict.fromkeys(asked.split(",") if isinstance(asked, str) else asked))
    if names == ("auto",):
        return ("ort-cuda",) if runtime.choose() == "ort-cuda" else names
    known = ("auto", *runtimes.RUNTIMES, "ort-cuda")
    for name in names:
        if name not in known:
            raise BadInput(f"The runtime is '{name}'; known are {', '.join(known)}.")
    if len(names) > 1 and "ort-cuda" in names:
        raise BadInput("The runtime ort-cuda is timed on a device, the others on the processor. Time it in a call of its own.")
    if names == ("ort-cuda",):
        runtime.choose("ort-cuda")
    return names


def numbers(flag: str, value: int | str | Sequence[int], least: int) -> list[int]:
    """`1,32` -> [1, 32].

    Raises:
        BadInput: not whole numbers from `least` upwards.
    """
    parts = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int) else value
    try:
        found = [int(part) for part in parts]
    except ValueError:
        found = []
    if not found or min(found) < least:
        raise BadInput(f"--{flag} is '{value}'; needed are whole numbers from {least}, separated by commas.")
    return list(dict.fromkeys(found))


def resolved(names: Sequence[str], settings: dict[str, Any], batch: int, threads: int) -> dict[str, Recipe]:
    """A recipe per model, with the input size of the first file that knows its own where nothing else says it."""
    recipes = {name: make(model=name, batch=batch, threads=threads, **settings) for name in names}
    if any(needs_shape(recipe) for recipe in recipes.values()) and (known := known_shapes(names)):
        recipes = {n: r.model_copy(update={"input_shape": known}) if needs_shape(r) else r for n, r in recipes.items()}
    return recipes


def in_turns(
    files: _Files,
    wanted: Sequence[str],
    sizes: Sequence[int],
    counts: Sequence[int],
    cores: Sequence[int],
    progress: Progress | None,
) -> dict[str, Figures]:
    """Every candidate, group by group of equal batch size and threads."""
    found: list[Figures] = []
    for batch, threads in itertools.product(sizes, counts):
        rows: list[Candidate | Figures] = []
        for model, name in itertools.product(files.recipes, wanted):
            where = native(model) if name == "auto" else name
            try:
                rows.append(Candidate(model, where, files.file(model, where, batch), batch, threads, files.shapes(model)))
            except (_Unfit, exporters.ExportError) as error:
                rows.append(Figures(model, where, batch, threads, reason=str(error)))
        running = [row for row in rows if isinstance(row, Candidate)]
        if progress:
            progress("timing", 0.0, f"{len(running)} candidates, batch {batch}, {files.rounds} rounds")
        timed = iter(turns.race(running, rounds=files.rounds, cpus=cores))
        found += [next(timed) if isinstance(row, Candidate) else row for row in rows]
    if all(row.reason for row in found):
        raise BadInput(f"Nothing could be timed. {found[0].model} in {found[0].runtime}: {found[0].reason}")
    return named(found)


def named(rows: Sequence[Figures]) -> dict[str, Figures]:
    """By the model's name, and by what else differs."""
    parts = ("runtime", "batch", "threads")
    many = [part for part in parts if len({getattr(row, part) for row in rows if row.reason is None}) > 1]
    alone = len({row.model for row in rows}) == len(rows)
    return {
        row.model if alone else " ".join([row.model, *(f"{part}={getattr(row, part)}" for part in many)]): row for row in rows
    }


@dataclass
class _Files:
    """A file per model and runtime, written when it is first asked for."""

    recipes: dict[str, Recipe]
    folder: Path
    progress: Progress | None
    written: dict[tuple[str, ...], Path] = field(default_factory=dict[tuple[str, ...], Path])
    opened: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def rounds(self) -> int:
        """Of each candidate."""
        return next(iter(self.recipes.values())).rounds

    def shapes(self, model: str) -> tuple[tuple[int, ...], ...]:
        """Input shapes that are known beside the file, without the batch."""
        return tuple(parse_shape(text) for text in self.recipes[model].input_shape)

    def file(self, model: str, where: str, batch: int) -> Path:
        """What the runtime opens.

        Raises:
            _Unfit: the model is a file of another runtime.
            ExportError: a torch model cannot be written for this runtime.
        """
        path = Path(model)
        if path.suffix in ENGINES:
            raise _Unfit("a TensorRT engine is timed on its own device, by exporters/standalone/engine.py")
        if path.suffix in EXPORTED:
            if path.suffix == ".onnx":
                onnx_inputs(path, batch)  # says what is wrong with a file in words
            if path.suffix not in runtimes.OPENS[where]:
                endings = " or ".join(runtimes.OPENS[where])
                raise _Unfit(f"{path} is no file that {where} runs: it opens {endings}. Give the torch model, which is exported.")
            return path
        format = WRITES[where]
        key = (model, format, str(batch) if format == "executorch" else "")
        if key not in self.written:
            if self.progress:
                self.progress("opening", 0.0, f"{model} as {format}")
            exporters.require(format)
            if model not in self.opened:
                self.opened[model] = opened(self.recipes[model])[0]
            target = self.folder / f"{len(self.written)}{exporters.ENDING[format]}"
            artifact, opset = self.opened[model], self.recipes[model].opset
            if format == "onnx":
                exporters.export(format, artifact.module, artifact.inputs, target, opset=opset, check_parity=False)
            else:
                apart.export(format, artifact.module, artifact.inputs, target, batch=batch)
            self.written[key] = target
        return self.written[key]


def native(model: str) -> str:
    """The runtime that a file was made for; ONNX Runtime for a torch model."""
    suffix = Path(model).suffix
    return next((name for name, endings in runtimes.OPENS.items() if suffix in endings), "ort")


def steady(rows: Iterable[Figures]) -> None:
    """Refuse figures that scatter too much.

    Raises:
        Unsteady: names the first.
    """
    for row in rows:
        if row.noisy:
            raise Unsteady(
                f"The rounds of {row.model} in {row.runtime} scatter too much for any claim, or others took the cores. Let the "
                "machine rest, pin the cores (--cpu), or time more --rounds."
            )


def in_process(recipes: dict[str, Recipe], where: str, progress: Progress | None) -> dict[str, Figures]:
    """Torch's eager mode and CUDA, timed in turns in this process."""
    names = list(recipes)
    with tempfile.TemporaryDirectory() as folder:
        calls: dict[str, Callable[[], object]] = {}
        for number, name in enumerate(names):
            if progress:
                progress("opening", number / len(names), name)
            calls[name] = timed_call(recipes[name], where, Path(folder) / f"{number}.onnx")
        if progress:
            progress("opening", 1.0, "")
            progress("timing", 0.0, f"{recipes[names[0]].rounds} rounds in {where}")
        timings = compare(calls, names[0], rounds=recipes[names[0]].rounds)
    return {name: _of(timing, recipes[name], where) for name, timing in timings.items()}


def _of(timing: Timing, recipe: Recipe, where: str) -> Figures:
    return Figures(
        recipe.model, where, recipe.batch, recipe.threads or runtime.usable_cores(), timing.p50_ms, timing.ratio, timing.ci95,
        timing.samples, timing.p50_ci95_ms, per_second=1e3 * recipe.batch / timing.p50_ms, noisy=timing.noisy,
        verdict=timing.verdict,
    )  # fmt: skip


def needs_shape(recipe: Recipe) -> bool:
    """The file does not know its input size, and neither settings nor data say it."""
    return not (recipe.input_shape or recipe.data or knows_shape(recipe.model))


def knows_shape(model: str) -> bool:
    """An ONNX file and a model.compressed folder do."""
    return Path(model).suffix == ".onnx" or Path(model).is_dir()


def known_shapes(names: Sequence[str]) -> tuple[str, ...]:
    """Input shapes, as `--input-shape` takes them, of the first file that knows its own; () where none does."""
    for name in filter(knows_shape, names):
        path = Path(name)
        inputs = onnx_inputs(path, 1) if path.suffix == ".onnx" else open_artifact(path).inputs
        return tuple("x".join(map(str, x.shape[1:])) for x in inputs)
    return ()


def timed_call(recipe: Recipe, where: str, temporary: Path) -> Callable[[], object]:
    """One call of a model file in a runtime, on random inputs of the batch size to be timed."""
    path = Path(recipe.model)
    if path.suffix == ".onnx":
        if where == "torch":
            raise BadInput(f"{path} is an ONNX file, which torch does not run. Take --runtime ort, or give a torch model.")
        return runtime.runner(where, path, onnx_inputs(path, recipe.batch), recipe.threads)
    artifact, _ = opened(recipe)
    inputs = tuple(torch.randn(recipe.batch, *x.shape[1:], generator=torch.Generator().manual_seed(0)) for x in artifact.inputs)
    if where == "torch":
        return runtime.runner(where, artifact.module, inputs, recipe.threads)
    exporters.export("onnx", artifact.module, artifact.inputs, temporary, opset=recipe.opset, check_parity=False)
    return runtime.runner(where, temporary, inputs, recipe.threads)


def onnx_inputs(path: Path, batch: int) -> tuple[Tensor, ...]:
    """Random inputs of the shapes that an ONNX file names; its first axis is the batch."""
    import onnx

    if not path.is_file():
        raise BadInput(f"There is no file {path}. Give the path of an ONNX file or of a model.")
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf raises its own kinds
        raise BadInput(f"{path} is not a readable ONNX file ({type(error).__name__}). Export it again.") from error
    stored = {tensor.name for tensor in graph.initializer}
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in graph.input if i.name not in stored}
    for name, shape in shapes.items():
        if not shape or any(size < 1 for size in shape[1:]):
            raise BadInput(f"The input {name} of {path} has no fixed shape beside its batch. Export the model with fixed sizes.")
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape[0] or batch, *shape[1:], generator=generator) for shape in shapes.values())
