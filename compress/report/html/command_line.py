"""The command that repeats a run, from the settings that it ran with."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any, cast

from compress.recipe import Recipe

IN_MEMORY = "in memory"
"""What a recipe says in the place of an object (`compress.pipeline.given`, which stands above this package)."""


PRECISION = "map"
"""Mean average precision, in the recipe of a whole detector."""


def command_line(settings: Mapping[str, Any], out: str | None = None) -> str:
    """`compress run model.pt --data images --target macs=0.5`: every setting that is not the default, as a shell takes it.

    `out` is where its results go: a folder of its own, because one that holds a run is refused.

    Empty where there is no model to name, or where it or the data stood in memory.
    """
    model = settings.get("model")
    if not isinstance(model, str) or not model or in_memory(settings):
        return ""
    # Whole detectors have a command of their own, which alone counts like this.
    detector = settings.get("metric") == PRECISION
    asked = {name: value for name, value in settings.items() if not (detector and name in ("metric", "align"))}
    words = ["compress", "detector" if detector else "run", model, *flags(asked)]
    words += ["--out", out] if out else []
    return " ".join(map(shlex.quote, words))


def flags(settings: Mapping[str, Any]) -> list[str]:
    """The words of every setting but the model that is not the default, in the order of the recipe."""
    words: list[str] = []
    for name, field in Recipe.model_fields.items():
        value = settings.get(name)
        if name != "model" and value is not None and _plain(value) != _plain(field.get_default(call_default_factory=True)):
            words += _flag(name, value)
    return words


def in_memory(settings: Mapping[str, Any]) -> bool:
    """Whether the model or the data were objects of a program, which no command line can name."""
    return any(str(settings.get(name, "")).startswith(IN_MEMORY) for name in ("model", "data"))


def _plain(value: Any) -> Any:
    return list(cast("tuple[Any, ...]", value)) if isinstance(value, tuple) else value


def _flag(name: str, value: Any) -> list[str]:
    dashed = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [dashed] if value else [f"--no-{dashed[2:]}"]
    if isinstance(value, dict):
        pairs = cast("dict[str, Any]", value).items()
        return [word for key, one in pairs for word in (dashed, f"{key}={json.dumps(one)}")]
    if isinstance(value, list | tuple):
        return [word for one in cast("list[Any]", value) for word in (dashed, str(one))]
    return [dashed, f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)]
