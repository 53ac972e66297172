"""A few real inputs that travel with a model, and what it made of them.

From the run's own data, or from a file: `.npz` with the arrays of each input under `input_0`, `input_1`, ... (or one array of any
name), samples along the first axis, ready for the model.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compress.data import Preparation
from compress.data.npz import read_arrays
from compress.errors import BadInput

COUNT = 3


@dataclass(frozen=True)
class Samples:
    """Inputs of a few samples and what is known about them.

    Attributes:
        inputs: per sample, an array (1, ...) per model input.
        mean, std: that the images were normalized with; None where nobody knows.
        classes: names in the order of the outputs; None where there are none.
        preparation: how a picture became an input; None where nobody knows.
        task: classification, multilabel, segmentation, regression, image or text; empty where nobody knows.
    """

    inputs: tuple[tuple[np.ndarray, ...], ...]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: tuple[str, ...] | None = None
    task: str = ""
    preparation: Preparation | None = None


def from_file(path: Path, count: int = COUNT) -> Samples:
    """The first samples of a .npz or .npy file.

    Raises:
        BadInput: it cannot be read, holds objects or numbers that are none, or inputs of different length.
    """
    loaded = read_arrays(path, "The samples ", "Give a .npz with input_0, input_1, ...")
    named = {"input_0": loaded} if isinstance(loaded, np.ndarray) else loaded
    names = sorted(k for k in named if k.startswith("input_")) or (list(named) if len(named) == 1 else [])
    arrays = [named[k] for k in names]
    if not arrays or min((len(a) if a.ndim else 0) for a in arrays) < 1 or len({len(a) for a in arrays}) > 1:
        raise BadInput(
            f"The samples {path} hold {', '.join(named) or 'nothing'}; needed are input_0, ... with as many samples each."
        )
    if not all(np.issubdtype(a.dtype, np.number) and bool(np.isfinite(a).all()) for a in arrays):
        raise BadInput(f"The samples {path} hold values that are no finite numbers. Give inputs as the model takes them.")
    return Samples(tuple(tuple(a[i : i + 1] for a in arrays) for i in range(min(count, len(arrays[0])))))


def npy(array: np.ndarray) -> bytes:
    """The bytes of a .npy file (format 1.0)."""
    made = io.BytesIO()
    np.lib.format.write_array(made, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return made.getvalue()


def files(
    samples: Samples, expected: Mapping[str, Sequence[Sequence[np.ndarray]]], tolerance: Mapping[str, float]
) -> tuple[dict[str, bytes], dict[str, list[dict[str, Any]]]]:
    """The .npy files, and for each model the entry of every sample in the manifest.

    Args:
        samples: the inputs.
        expected: model -> sample -> outputs.
        tolerance: model -> allowed difference as a share of an output's largest absolute value.
    """
    made = {f"samples/{i}-input-{k}.npy": npy(x) for i, inputs in enumerate(samples.inputs) for k, x in enumerate(inputs)}
    entries: dict[str, list[dict[str, Any]]] = {}
    for model, outputs in expected.items():
        stem = Path(model).name.replace(".", "-")
        scale = [max(float(np.abs(sample[k]).max(initial=0.0)) for sample in outputs) for k in range(len(outputs[0]))]
        allowed = [float(f"{max(tolerance[model] * s, 1e-12):.3g}") for s in scale]
        entries[model] = []
        for i, sample in enumerate(outputs):
            names = [f"samples/{i}-{stem}-output-{k}.npy" for k in range(len(sample))]
            made |= {name: npy(y) for name, y in zip(names, sample, strict=True)}
            inputs = [f"samples/{i}-input-{k}.npy" for k in range(len(samples.inputs[i]))]
            entries[model].append({"inputs": inputs, "outputs": names, "tolerance": allowed})
    return made, entries
