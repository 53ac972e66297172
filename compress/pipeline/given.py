"""What a caller hands over in memory beside the settings: a module, data, and example inputs.

A recipe is text. There these stand as `in memory (...)` with a fingerprint, so that a run in memory is resumed with the same
weights and samples only, and a recipe file says what it lacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compress.checkpoint.load import parse_shape
from compress.checkpoint.load.live_module import examples, fingerprint, refuse_other
from compress.data import Data
from compress.data.batches import by_name
from compress.data.objects import fingerprint as fingerprint_of_data
from compress.data.objects import open_objects
from compress.detection import wholes
from compress.errors import BadInput
from compress.recipe import Recipe, from_toml, make, merged

IN_MEMORY = "in memory"
_SETTINGS = "compress.data.open_objects(data, settings=compress.data.settings.make(...))"
"""Where what a data.toml says is said of data that is in no file."""


@dataclass(frozen=True)
class Given:
    """What is not on disk; the caller's own objects, which nobody changes.

    Attributes:
        model: the module; None where the recipe names a file.
        data: opened; None where the recipe names a source, or there is none.
        inputs: examples for the model, one tensor each, batch first; () where nobody gave any.
    """

    model: nn.Module | None = None
    data: Data | None = None
    inputs: tuple[Tensor, ...] = ()

    def lacks(self, recipe: Recipe) -> str | None:
        """Why a recipe cannot be carried out with this alone: it was made from what was in memory."""
        for name, there in (("model", self.model), ("data", self.data)):
            if there is None and (said := str(getattr(recipe, name))).startswith(IN_MEMORY):
                return (
                    f"The recipe's {name} was {said}; needed is that {name} itself. Give it in Python, as in "
                    "compress.run(model, recipe='recipe.toml', data=data), or name a file."
                )
        return None


NOTHING = Given()
"""All that there is stands in the recipe."""


def resolved_recipe(model: object, recipe: Recipe | str | Path | None, settings: Mapping[str, Any]) -> tuple[Recipe, Given]:
    """One recipe out of a file or a recipe, a model, and settings that win over both; and what of it is in memory.

    Raises:
        BadInput: no model, a setting that is not known or out of range, or data in memory that cannot be used.
    """
    text, given, data = _taken(model, settings)
    if isinstance(recipe, Recipe):
        resolved = merged(recipe.model_dump(), text)
    else:
        resolved = make(**text) if recipe is None else from_toml(Path(recipe), **text)
    if not resolved.model:
        raise BadInput(
            "No model was given. Give a file, as in 'compress run model.pt --data images', or a --recipe that names one."
        )
    return _opened_data(resolved, given, data)


def _taken(model: object, settings: Mapping[str, Any]) -> tuple[dict[str, Any], Given, object]:
    """Settings that are text alone, what is in memory, and the data that is still to be opened (None: there is none).

    Raises:
        BadInput: a model, data or inputs that cannot be any.
        UnsupportedModel: a whole detector.
    """
    text = dict(settings)
    if model is not None:
        refuse_other(model)
        if isinstance(model, nn.Module):
            wholes.refuse(model)  # before the data: images with boxes would be refused for what they are
        text["model"] = f"{IN_MEMORY} ({_model(model)})" if isinstance(model, nn.Module) else str(model)
    data = text.get("data")
    if isinstance(data, str | PathLike):
        text["data"], data = str(data), None
    elif data is not None:
        text["data"] = f"{IN_MEMORY} ({by_name(data)})"
    inputs: tuple[Tensor, ...] = ()
    # One word, two meanings: what a layer is refitted on, and an example of what the model takes.
    if "inputs" in text and text["inputs"] is not None and not isinstance(text["inputs"], str):
        inputs = examples(text.pop("inputs"))
    return text, Given(model if isinstance(model, nn.Module) else None, None, inputs), data


def _opened_data(recipe: Recipe, given: Given, data: object) -> tuple[Recipe, Given]:
    """The data opened with the recipe's seed, and its fingerprint in the recipe.

    Raises:
        BadInput, EmptyData: see `open_objects`.
    """
    if data is None:
        return recipe, given
    shapes = [tuple(x.shape[1:]) for x in given.inputs] or [parse_shape(text) for text in recipe.input_shape]
    opened = open_objects(data, seed=recipe.seed, shape=shapes[0] if shapes else None)
    digits = fingerprint_of_data(opened)
    named = f"{IN_MEMORY} ({by_name(data)}{', sha256 ' + digits if digits else ''})"
    return recipe.model_copy(update={"data": named}), replace(given, data=opened)


def spoken(text: str, recipe: Recipe) -> str:
    """What is said of data, for whom it is in memory: there is no file to write it into."""
    return in_program(text) if recipe.data.startswith(IN_MEMORY) else text


def in_program(text: str) -> str:
    """The same where a data.toml is named."""
    return text.replace("a data.toml", _SETTINGS)


def device_of(model: nn.Module | None) -> str:
    """Where a result belongs: beside the model that it came from."""
    first = next(model.parameters(), None) if model is not None else None
    return "cpu" if first is None else str(first.device)


def _model(model: nn.Module) -> str:
    return f"{type(model).__name__}, sha256 {fingerprint(model)}"
