"""`compress bench`: several model files timed in turns, in one runtime."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import exporters
from compress.errors import BadInput
from compress.load import open_artifact
from compress.measure import runtime
from compress.measure.latency import Timing, compare
from compress.opening import opened
from compress.recipe import Recipe, make
from compress.stage import Progress


def bench(*models: str | Path, progress: Progress | None = None, **settings: Any) -> dict[str, Timing]:
    """Latency of several model files, timed in turns; each is compared with the first. All run in the same runtime.

    A model that is not an ONNX file is exported to a temporary one first, except for `runtime="torch"`. An input size
    that is not given is that of the first file that knows its own.

    Raises:
        BadInput: no model, a model that cannot be opened, or an ONNX file where torch was asked for.
    """
    if not models:
        raise BadInput("No model was given. Give at least one file; the first one is what the others are compared with.")
    names = list(dict.fromkeys(map(str, models)))
    recipes = {name: make(model=name, **settings) for name in names}
    if any(needs_shape(recipe) for recipe in recipes.values()) and (known := known_shapes(names)):
        recipes = {n: r.model_copy(update={"input_shape": known}) if needs_shape(r) else r for n, r in recipes.items()}
    where = runtime.choose(recipes[names[0]].runtime)
    with tempfile.TemporaryDirectory() as folder:
        calls: dict[str, Callable[[], object]] = {}
        for number, name in enumerate(names):
            if progress:
                progress("opening", number / len(names), name)
            calls[name] = timed_call(recipes[name], where, Path(folder) / f"{number}.onnx")
        if progress:
            progress("opening", 1.0, "")
            progress("timing", 0.0, f"{recipes[names[0]].rounds} rounds in {where}")
        return compare(calls, names[0], rounds=recipes[names[0]].rounds)


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
