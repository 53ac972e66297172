"""From a recipe to what a run works on: device, traced model, data and metric."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

import exporters
from compress.artifact import Artifact
from compress.checkpoint.load import load_model, parse_shape, refusal
from compress.checkpoint.load.live_module import in_memory
from compress.checkpoint.load.model import Loaded, OfData, traced
from compress.data import Data, check_output, open_data
from compress.data.checks import by_position
from compress.data.open_data import CHANGED
from compress.detection import wholes
from compress.errors import BadInput
from compress.measure import known_names, quality
from compress.pipeline import doubts
from compress.pipeline.given import IN_MEMORY, NOTHING, Given, spoken
from compress.pipeline.latency_cache import LatencyCache
from compress.progress import Progress, silent
from compress.recipe import DRAWN, Recipe
from compress.stage import Context
from compress.user.wording import many


def opened(recipe: Recipe, given: Given = NOTHING) -> tuple[Artifact, Data | None]:
    """The traced model of a recipe, and its data where a source is named; what is in memory comes instead.

    Input shapes are those that the recipe says, else the checkpoint's own, else the data's.
    """
    if lacking := given.lacks(recipe):
        raise BadInput(lacking)
    shapes = tuple(parse_shape(text) for text in recipe.input_shape)
    shape = shapes[0] if shapes else None
    loaded = None if given.model is not None else loaded_file(recipe)
    if loaded is not None:  # before the data: images with boxes would be refused for what they are
        wholes.refuse(loaded.module)
    data = given.data
    if data is None and recipe.data:
        data = open_data(recipe.data, seed=recipe.seed, shape=shape, trust=recipe.trust_recipe)
    # A stored model knows its own input shape; of a plain file only the data can tell it.
    known = shapes or given.inputs or (given.model is None and Path(recipe.model).is_dir())
    of_data: OfData = "no" if data is None or known else _kind(data, recipe)
    if data is not None and not known:
        shapes = tuple(tuple(x.shape[1:]) for x in next(data.train.batches(1, limit=1)).inputs)
    if loaded is not None:
        seen = shapes or tuple(tuple(x.shape[1:]) for x in given.inputs)
        return traced(loaded, recipe.model, seen, recipe.output, of_data), data
    assert given.model is not None
    return in_memory(given.model, inputs=given.inputs, shapes=shapes, output=recipe.output, of_data=of_data), data


def loaded_file(recipe: Recipe) -> Loaded:
    """The model file of a recipe, read and not yet traced."""
    return load_model(
        recipe.model,
        arch=recipe.arch,
        arch_kwargs=recipe.arch_kwargs,
        trust_pickle=recipe.trust_pickle,
        weights_entry=recipe.weights_entry,
    )


def _kind(data: Data, recipe: Recipe) -> OfData:
    """Pictures can be converted by a data.toml; what a program holds, or its items, are used as they are."""
    made = data.spec.preparation
    converted = made is not None and made.origin != "items" and not recipe.data.startswith(IN_MEMORY)
    return "pictures" if converted else "values"


def prepare(
    recipe: Recipe, progress: Progress = silent, given: Given = NOTHING, refusing: bool = False
) -> tuple[Context, quality.Metric]:
    """Open data and model, and check that they fit each other: the head of every command that looks at both.

    Raises:
        BadInput: they do not; with `refusing` also where the inputs are not those of the model's training (`doubts`).
    """
    device = find_device(recipe.device)
    # For its refusal, before model and data are opened.
    _ = LatencyCache(recipe, device).runtime
    for name in recipe.export:
        exporters.require(name)  # what is missing is told before anything slow
    progress("open data and model", 0.0, f"{recipe.data}, {recipe.model}")
    if not recipe.data:
        raise BadInput(
            "There is no data; needed is --data FOLDER, .npz, torchvision:NAME@DIR, digits, module:factory or data.toml; in "
            "Python also data=(x, y), a Dataset or a DataLoader."
        )
    dense, data = opened(recipe, given)
    assert data is not None
    first = next(iter(data.train.batches(1)))
    if len(dense.inputs) != len(first.inputs):
        raise BadInput(
            f"The model takes {many(len(dense.inputs), 'input')}, the data gives {len(first.inputs)}. "
            "Needed are data with as many: a factory (--data module:factory) can give them."
        )
    metric, chosen = quality.choose(recipe.metric, data.spec.task, data.spec.labeled)
    own = own_meaning(recipe)
    shape = tuple(quality.first_output(answered(dense, first.inputs, _kind(data, recipe))).shape)
    odd = check_output(data, shape, own)
    if (places := by_position(data, shape)) is not None:
        dense = doubts.warned(dense, spoken(places, recipe))
    if not own:
        _refuse_sigmoid(dense, data, shape)
    # Rounding may be trained without --epochs.
    trained = recipe.epochs > 0 or any(name.startswith("onnx-int8") for name in recipe.export)
    told = [note for note in data.notes if trained or not note.startswith(CHANGED)]
    noted = [*told, *odd, *([chosen] if chosen else [])]
    dense = dense.noting(*_elsewhere(recipe), *(spoken(one, recipe) for one in noted))
    dense = doubts.told_or_refused(doubts.uncounted(dense), data, metric, recipe, refusing)
    # Moved once, here: every stage finds the model where the run works.
    dense = replace(dense, module=dense.on(device))
    # Stages get a number; whether rounding pays is the pipeline's question, because it is measured.
    settled = recipe.model_copy(update={"align": recipe.align or 1})
    return Context(dense, data, settled, device, progress, initial=_initial(recipe, dense, device)), metric


def _elsewhere(recipe: Recipe) -> list[str]:
    """What has to be said of figures that are not this machine's."""
    return [f"Latency is that of {recipe.on}, in its ONNX Runtime; all else was measured here."] if recipe.on else []


def own_meaning(recipe: Recipe) -> bool:
    """What the outputs mean is said by functions of the user's own: there is nothing left to check labels against."""
    return ":" in recipe.metric and (":" in recipe.loss or recipe.epochs == 0)


def _refuse_sigmoid(dense: Artifact, data: Data, shape: tuple[int, ...]) -> None:
    """Refuse chances where logits are needed: all of them are above 0, so that every label would hold.

    Raises:
        BadInput: outputs that decide one by one come from a sigmoid.
    """
    lone = data.spec.task in ("classification", "segmentation") and shape[1:2] in ((1,), ())
    if (lone or data.spec.task == "multilabel") and _ends_in_sigmoid(dense.module):
        raise BadInput(
            "The model ends in a sigmoid; needed are logits, of which 0 is the threshold. Leave it out, or give --metric "
            "and --loss of your own."
        )


def _ends_in_sigmoid(module: GraphModule) -> bool:
    """The first output comes from a sigmoid, as tracing writes all of them; changes of shape behind it change no value."""
    node: Any = next(iter(module.graph.find_nodes(op="output")))
    while not isinstance(node, Node) or node.op == "output" or _only_shapes(node):
        inside = tuple(node.values()) if isinstance(node, dict) else node.args if isinstance(node, Node) else node
        if not isinstance(inside, tuple | list) or not inside:
            return False
        node = inside[0]
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), nn.Sigmoid)


def _only_shapes(node: Node) -> bool:
    names = ("squeeze", "view", "reshape", "flatten", "float", "contiguous", "getitem")
    layer = node.graph.owning_module and node.op == "call_module" and node.graph.owning_module.get_submodule(str(node.target))
    return isinstance(layer, nn.Flatten | nn.Identity | nn.Dropout) or getattr(node.target, "__name__", node.target) in names


def _initial(recipe: Recipe, dense: Artifact, device: torch.device) -> Artifact | None:
    """The weights that training began with, if the recipe names a file of them.

    Raises:
        BadInput: it is of another architecture.
    """
    if recipe.initial is None or recipe.initial == DRAWN:
        return None
    shapes = tuple("x".join(map(str, x.shape[1:])) for x in dense.inputs)
    # Opened like the model, with the same class and shapes, but without data.
    found, _ = opened(
        recipe.model_copy(update={"model": recipe.initial, "data": "", "input_shape": shapes, "weights_entry": None})
    )
    shaped, other = ({name: tuple(t.shape) for name, t in a.module.state_dict().items()} for a in (dense, found))
    if differ := [name for name in shaped if other.get(name) != shaped[name]] or [name for name in other if name not in shaped]:
        there, here = (where.get(differ[0], "absent") for where in (other, shaped))
        raise BadInput(
            f"--initial {recipe.initial} is of another architecture: {differ[0]} is {there} there and {here} in the model. "
            "Give the checkpoint that the model's own training began with."
        )
    return replace(found, module=found.on(device))


def answered(dense: Artifact, inputs: tuple[Tensor, ...], of_data: OfData = "values") -> Any:
    """What the model makes of the first sample: a stored model knows its input shape, and the data may have another.

    Raises:
        BadInput: it does not take such inputs.
    """
    try:
        with torch.no_grad():
            return dense.module(*inputs)
    except Exception as error:  # torch raises all kinds
        if (told := refusal(dense.module, inputs, of_data)) is not None:
            raise told from error
        needs, found = ("x".join(map(str, x[0].shape[1:])) for x in (dense.inputs, inputs))
        raise BadInput(
            f"The model was traced with inputs of {needs} and does not run on the data's, of {found}. "
            f"Give the data it was trained on{', or spell channels and size in a data.toml' if of_data == 'pictures' else ''}."
        ) from error


def find_device(name: str) -> torch.device:
    """The device of a name; `auto` takes CUDA, then MPS, then the CPU.

    Raises:
        BadInput: unknown, or asked for and absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    known_names.require({"device": name})
    device = torch.device(name)
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(device.type, False):  # unknown kinds of device are absent ones
        raise BadInput(
            f"The device {name} was asked for, but torch sees none here. Take --device cpu, or run where there is one."
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise BadInput(f"The device {name} was asked for, but the last one that torch sees is cuda:{last}. Take one of these.")
    return device
