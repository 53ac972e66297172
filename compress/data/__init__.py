"""Images and what is known about them, from whatever a user has.

    source                 open_data             Data
    folder, .npz,    ->    split, size,    ->    train | held_out | test   (Split: seeded batches, ready for the model)
    digits, tensors,       normalization         spec, notes
    loaders, ...

Whatever was inferred (size, normalization, split, augmentation, task) stands in `Data.notes`, one sentence each.
`held_out` is never a part of the test data; the test data is for measuring only.
"""

from __future__ import annotations

from compress.data.checks import check_input, check_output
from compress.data.objects import open_objects
from compress.data.open_data import from_arrays, open_data
from compress.data.preparation import Preparation
from compress.data.settings import PRESETS, Settings
from compress.data.splits import Augment, Batch, Data, DataSpec, Split

__all__ = [
    "PRESETS",
    "Augment",
    "Batch",
    "Data",
    "DataSpec",
    "Preparation",
    "Settings",
    "Split",
    "check_input",
    "check_output",
    "from_arrays",
    "open_data",
    "open_objects",
]
