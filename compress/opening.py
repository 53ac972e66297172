"""From a recipe to what a run works on: the traced model and the data."""

from __future__ import annotations

from pathlib import Path

from compress.artifact import Artifact
from compress.data import Data, open_data
from compress.load import open_artifact, parse_shape
from compress.recipe import Recipe


def opened(recipe: Recipe) -> tuple[Artifact, Data | None]:
    """The traced model of a recipe, and its data where a source is named.

    Input shapes are those that the recipe says, else the checkpoint's own, else the data's.
    """
    shapes = tuple(parse_shape(text) for text in recipe.input_shape)
    data = open_data(recipe.data, seed=recipe.seed, shape=shapes[0] if shapes else None) if recipe.data else None
    if data is not None and not shapes and not Path(recipe.model).is_dir():
        shapes = tuple(tuple(x.shape[1:]) for x in next(data.train.batches(1, limit=1)).inputs)
    artifact = open_artifact(
        recipe.model, arch=recipe.arch, arch_kwargs=recipe.arch_kwargs, trust_pickle=recipe.trust_pickle, input_shapes=shapes
    )
    return artifact, data
