"""`compress export`: a model in the format of another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from torch import nn

import exporters
from compress.commands.outputs import apart, free
from compress.detection.wholes import part_of
from compress.errors import BadInput
from compress.keywords import Settings, with_settings
from compress.measure import meant
from compress.pipeline import exports
from compress.pipeline.begun_with import files_of
from compress.pipeline.given import resolved_recipe
from compress.pipeline.prepare import opened

Place = str | Path


@with_settings
def export(
    model: nn.Module | Place,
    *,
    format: str = "onnx",
    out: Place | None = None,
    force: bool = False,
    **settings: Unpack[Settings],
) -> exporters.Exported:
    """Write a model in the format of another runtime, compared with torch on the same inputs: real ones where there is data.

    Without `out` the file is called model, with the ending of the format. 8 bits need `data` to calibrate on. Of a detector in
    memory the part that computes tensors is written; its `inputs` are a list of images.

    Raises:
        BadInput: unknown format, the model cannot be opened, or `out` exists and `force` is not given.
        MissingBackend: what the format needs is not installed.
        ExportError: the model cannot be written in this format, or computes something else there.
    """
    if format not in exporters.EXPORTERS:
        raise BadInput(
            f"There is no format '{format}'; known are {', '.join(exporters.EXPORTERS)}."
            f"{meant.export(format, exporters.EXPORTERS)} 'compress doctor' says more."
        )
    exporters.require(format)
    path = Path(out or f"model{exporters.ENDING[format]}")
    free(path, force)
    taken, inputs = part_of(model, settings.get("inputs"))
    recipe, given = resolved_recipe(taken, None, {**settings, "inputs": inputs} if taken is not model else settings)
    if format in exporters.CALIBRATED and not recipe.data:
        raise BadInput(f"{format} takes the ranges of its 8 bits from real inputs, and none were given. Add --data.")
    apart(path, *files_of(recipe))
    if path.is_dir():
        raise BadInput(
            f"--out {path} is a folder; needed is the file to write, such as {path / f'model{exporters.ENDING[format]}'}."
        )
    artifact, data = opened(recipe, given)
    return exports.write(format, artifact, path, recipe, data, {})
