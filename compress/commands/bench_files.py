"""Model files as they are raced: which runtime opens them, exported where they are torch models, and their input sizes.

A package stands for the ONNX models in it, once its hashes hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import exporters
from compress.checkpoint.load import open_artifact, parse_shape
from compress.checkpoint.load.live_module import examples
from compress.checkpoint.save import save
from compress.errors import BadInput
from compress.graph.trace.shapes import MAX_VALUES, SAFE_VALUES
from compress.pipeline.given import resolved_recipe
from compress.pipeline.prepare import opened
from compress.progress import Progress
from compress.recipe import Recipe, make
from exporters import isolated, runtimes
from exporters.standalone import checksums

EXPORTED = tuple({ending for known in runtimes.RUNTIMES.values() for ending in known.opens})
ENGINES = (".engine", ".plan")
PROGRAMS = (".pt2", ".torchscript")
"""What no sandbox holds: `torch.export.load` evaluates text and unpickles, TorchScript opens files."""
PACKAGES = (".tar.gz", ".tgz")


class Unfit(Exception):
    """A model that a runtime does not take, and why."""


def stored(
    models: Sequence[nn.Module | str | Path], settings: dict[str, Any], folder: Path
) -> tuple[list[tuple[str, Path]], dict[str, Any]]:
    """(name, file) of every model, and the settings without what is in memory: a module is stored in `folder`.

    Raises:
        BadInput: what a module takes is not known.
        UnsupportedModel: a module that has no form without its class.
    """
    files = list[tuple[str, Path]]()
    paths = [Path(model).resolve() for model in models if not isinstance(model, nn.Module)]
    if twice := [path for path in dict.fromkeys(paths) if paths.count(path) > 1]:
        raise BadInput(f"{twice[0].name} is given twice; needed is each model once, for a comparison with itself tells nothing.")
    named = [type(model).__name__ for model in models if isinstance(model, nn.Module)]
    for number, model in enumerate(models, 1):
        if not isinstance(model, nn.Module):
            files.append((str(model), Path(model)))
            continue
        recipe, given = resolved_recipe(model, None, settings)
        name = type(model).__name__ + (f" {number}" if named.count(type(model).__name__) > 1 else "")
        files.append((name, save(opened(recipe, given)[0], folder / f"{number}.compressed")))
    # The stored ones know their inputs; files beside them are opened with the shapes of the same examples.
    text = {name: value for name, value in settings.items() if name != "data" or isinstance(value, str)}
    if "inputs" in text and not isinstance(text["inputs"], str):
        text["input_shape"] = tuple(tuple(x.shape[1:]) for x in examples(text.pop("inputs")))
    return files, text


def unpacked(given: Iterable[tuple[str, Path]], folder: Path) -> Iterator[tuple[str, Path]]:
    """(name, file) of every model; a package is opened into `folder` and gives each ONNX model in it.

    Raises:
        BadInput: a package that is not whole, not safe to open, or holds no such model.
    """
    for number, (name, path) in enumerate(dict(given).items()):
        if not name.endswith(PACKAGES):
            yield name, path
            continue
        inside = folder / f"package-{number}"
        inside.mkdir()
        try:
            checksums.unpack(Path(name), inside)
            wrong = checksums.problems(inside)
        except checksums.Refused as error:
            raise BadInput(str(error)) from error
        if wrong:
            raise BadInput(f"{name} does not match its checksums: {wrong[0]}. Fetch it again.")
        models = sorted((inside / "models").glob("*.onnx"))
        if not models:
            raise BadInput(f"{name} holds no ONNX model, and nothing else is timed from a package. Give the files.")
        yield from ((name if len(models) == 1 else f"{name}:{model.name}", model) for model in models)


def resolved(models: Mapping[str, Path], settings: dict[str, Any], batch: int, threads: int) -> dict[str, Recipe]:
    """A recipe per model, with the input size of the first file that knows its own where nothing else says it."""
    recipes = {name: make(model=str(path), batch=batch, threads=threads, **settings) for name, path in models.items()}
    if any(needs_shape(recipe) for recipe in recipes.values()) and (known := known_shapes(models.values())):
        recipes = {n: r.model_copy(update={"input_shape": known}) if needs_shape(r) else r for n, r in recipes.items()}
    return recipes


@dataclass
class Files:
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
            BadInput: a program of torch, whose author is not trusted.
            Unfit: the model is a file of another runtime.
            ExportError: a torch model cannot be written for this runtime.
        """
        path = Path(self.recipes[model].model)
        if path.suffix in ENGINES:
            raise Unfit("a TensorRT engine is timed on its own device, by exporters/standalone/engine.py")
        if path.suffix in EXPORTED:
            if path.suffix in PROGRAMS and not self.recipes[model].trust_pickle:
                raise BadInput(
                    f"{path} is a program that torch runs: whoever wrote it may have it run code, and read and write files. "
                    "Add --trust-pickle if you trust them, or give an .onnx file, or the folder model.compressed."
                )
            if path.suffix == ".onnx":
                onnx_inputs(path, batch)  # says what is wrong with a file in words
            if path.suffix not in runtimes.RUNTIMES[where].opens:
                endings = " or ".join(runtimes.RUNTIMES[where].opens)
                raise Unfit(f"{path} is no file that {where} runs: it opens {endings}. Give the torch model, which is exported.")
            return path
        format = written_for(where)
        key = (model, format, str(batch) if format in exporters.FIXED else "")
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
                isolated.export(format, artifact.module, artifact.inputs, target, batch=batch)
            self.written[key] = target
        return self.written[key]


def native(model: Path) -> str:
    """The runtime that a file was made for; ONNX Runtime for a torch model."""
    return next((name for name, known in runtimes.RUNTIMES.items() if model.suffix in known.opens), "ort")


def written_for(runtime: str) -> str:
    """The format that a torch model is written in for a runtime: the first one of full precision that it opens."""
    opens = runtimes.RUNTIMES[runtime].opens
    return next(name for name, format in exporters.FORMATS.items() if format.ending in opens and not format.lossy)


def needs_shape(recipe: Recipe) -> bool:
    """The file does not know its input size, and neither settings nor data say it."""
    return not (recipe.input_shape or recipe.data or knows_shape(Path(recipe.model)))


def knows_shape(path: Path) -> bool:
    """An ONNX file and a model.compressed folder do."""
    return path.suffix == ".onnx" or path.is_dir()


def known_shapes(paths: Iterable[Path]) -> tuple[str, ...]:
    """Input shapes, as `--input-shape` takes them, of the first file that knows its own; () where none does."""
    for path in filter(knows_shape, paths):
        inputs = onnx_inputs(path, 1) if path.suffix == ".onnx" else open_artifact(path).inputs
        return tuple("x".join(map(str, x.shape[1:])) for x in inputs)
    return ()


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
        if not shape or shape[0] < 0 or any(size < 1 for size in shape[1:]):
            raise BadInput(f"The input {name} of {path} has no fixed shape beside its batch. Export the model with fixed sizes.")
        # What a file says is believed as far as nobody is harmed by it.
        if (shape[0] or batch) * math.prod(shape[1:]) > (SAFE_VALUES if shape[0] else MAX_VALUES):
            raise BadInput(
                f"The input {name} of {path} has {'x'.join(map(str, (shape[0] or batch, *shape[1:])))[:80]} values; at most "
                f"{MAX_VALUES} are made, {SAFE_VALUES} where the file says the batch. Give a smaller --batch, or another file."
            )
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape[0] or batch, *shape[1:], generator=generator) for shape in shapes.values())
