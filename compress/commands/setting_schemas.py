"""JSON Schemas of recipe.toml and data.toml, made from the classes that check them: what editors complete and underline."""

from __future__ import annotations

import json
from typing import Any

from compress.data.settings import Settings
from compress.measure.asked import UNITS
from compress.recipe import RENAMED, Recipe

FOLDER = ".compress"
"""Beside the files that name them, so that they hold on any machine that has the folder."""
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """Of recipe.toml: every setting of `compress run`."""
    made = _titled(Recipe.model_json_schema(), "recipe.toml", Recipe.__doc__ or "")
    fields = made["properties"]
    for name in ("export", "variants", "input_shape"):
        # As `Recipe` reads them: one text, with commas where several may be meant, or a list.
        fields[name] = {**fields[name], "type": ["array", "string"]}
    fields["input_shape"]["items"] = {"type": ["string", "integer", "array"]}
    fields["target"]["examples"] = [f"{unit}=0.5" for unit in UNITS if unit != "size"] + ["size=6.5MB"]
    for old, new in RENAMED.items():
        fields[old] = {**fields[new], "deprecated": True, "description": f"is called {new} now"}
    return made


def data_schema() -> dict[str, Any]:
    """Of data.toml."""
    made = _titled(Settings.model_json_schema(), "data.toml", "How images become the model's input.")
    made["properties"]["size"] = {"anyOf": [*made["properties"]["size"]["anyOf"], {"type": "integer"}], "default": None}
    return {**made, "required": ["source"]}


def texts() -> dict[str, str]:
    """Both, by the name of their files."""
    both = {"recipe.schema.json": recipe_schema(), "data.schema.json": data_schema()}
    return {name: json.dumps(schema, indent=1) + "\n" for name, schema in both.items()}


def _titled(schema: dict[str, Any], title: str, text: str) -> dict[str, Any]:
    return {"$schema": DIALECT, **schema, "title": title, "description": text}
