"""Paths that do not exist are told before torch is loaded, which takes seconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compress.edits import read
from compress.errors import BadInput
from compress.recipe import DRAWN, is_data, settings_in
from compress.user import files
from compress.user.shard_paths import shards


def refuse_missing(typed: Mapping[str, Any], source: Callable[[str], object] = files.source) -> None:
    """Look for the files that a command line names; `source` for data that is a path.

    Raises:
        BadInput: one is not there, in the words of whoever would have opened it.
    """
    for written in ("out", "model", "teacher", "apply_to"):
        if typed.get(written):
            files.spelled(Path(typed[written]))
    for name, opened in (("recipe", settings_in), ("plan", read)):
        if typed.get(name) and not Path(typed[name]).exists():
            opened(Path(typed[name]))
    initial = typed.get("initial")
    models = (typed.get("model"), typed.get("teacher"), typed.get("apply_to"), None if initial == DRAWN else initial)
    for model in filter(None, models):
        if not Path(model).exists():
            raise BadInput(files.no_model(Path(model)))
    for model in typed.get("models") or ():
        files.spelled(Path(model))
        if not Path(model).exists():
            raise BadInput(f"There is no file {model}. Give the path of an ONNX file or of a model.")
    data = typed.get("data")
    is_path = data and data != "digits" and is_data(data) and not data.startswith("torchvision:")
    # Shards are files that braces and stars stand for.
    if data and is_path and not shards(data):
        source(data)
