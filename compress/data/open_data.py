"""`open_data`: a source, its splits, its normalization and its augmentation, with a note for everything that was inferred."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.data.arrays import open_arrays, open_digits, open_npz
from compress.data.datasets import open_factory, open_torchvision
from compress.data.folder import open_folder
from compress.data.parquet import open_parquet
from compress.data.settings import PRESETS, Settings, from_toml, make
from compress.data.shards import open_shards
from compress.data.sources import Part, Source
from compress.data.splits import Augment, Data, DataSpec, Split, cut, scaled
from compress.data.stores import Pictures, Store, Stored, together
from compress.errors import BadInput, EmptyData
from compress.recipe import is_data
from compress.user import files
from compress.user.shard_paths import shards
from compress.user.wording import many

LOG = logging.getLogger("compress.data")
SAMPLE = 10_000  # images for mean and std: their standard error is then below 0.3 % of the std even for flat images
CHANGED = "Training images are changed"
"""How the note begins that matters only where something is trained."""
FEW = 256  # images that show whether there is anything to see, and files that are read for mean and std


def open_data(
    spec: str | Path,
    *,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
    settings: Settings | None = None,
    trust: bool = False,
) -> Data:
    """Open a user's data.

    Args:
        spec: image folder, .npz, .tar or .parquet files, torchvision:NAME@DIR, digits, module:factory, file.py:factory or a
            data.toml.
        seed: of the splits and of the sample behind mean and std.
        shape: (channels, height, width) that the model takes, where it is known.
        settings: what a data.toml would say.
        trust: run the code that a data.toml names.

    Raises:
        BadInput: unknown source, wrong channels or size, one class, too many unreadable images.
        EmptyData: no image.
    """
    text = str(spec)
    if text.endswith(".toml"):
        place = text
        settings = from_toml(files.source(place))
        text = settings.source
        if not trust and not is_data(text):
            raise BadInput(
                f"{place} names code (source = {text}), and using it would run that code. Give --data {text} yourself, or, if "
                "you trust whoever wrote the file, add --trust-recipe."
            )
    settings = settings or make()
    if not text:
        raise EmptyData(
            "No data was given. Give --data: an image folder, an .npz file, .tar or .parquet files, torchvision:NAME@DIR, "
            "digits, module:factory or a data.toml."
        )
    shape = None if shape is None else tuple(shape)
    found = shards(text) if is_data(text) else []
    if settings.columns.model_fields_set and (not found or found[0].suffix == ".tar"):
        raise BadInput(
            f"[columns] chooses among the columns of tables, and {text} is none; needed are .parquet files, or a folder that "
            "save_to_disk wrote. Leave [columns] out."
        )
    if text == "digits":
        source = open_digits(settings, shape)
    elif text.startswith("torchvision:"):
        source = open_torchvision(text.removeprefix("torchvision:"), settings, shape)
    elif not is_data(text):
        source = open_factory(text, settings, shape)
    elif found:
        opened = open_shards if found[0].suffix == ".tar" else open_parquet
        source = opened(found, settings, shape, torch.Generator().manual_seed(seed), text)
    else:
        path = files.source(text)
        if path.is_dir():
            source = open_folder(path, settings, shape, torch.Generator().manual_seed(seed))
        elif path.suffix == ".npz":
            source = open_npz(path, settings, shape)
        else:
            raise BadInput(
                f"{path} is a {path.suffix or 'plain'} file; needed is an image folder, an .npz file, .tar or .parquet "
                "files, or a data.toml."
            )
    data = source if isinstance(source, Data) else divided(source, settings, seed, text)
    for note in data.notes:
        LOG.info("%s", note)
    return data


def from_arrays(arrays: Mapping[str, Any], *, seed: int = 0, name: str = "arrays", **settings: Any) -> Data:
    """Data from arrays or tensors in memory: x_train, y_train, x_test, y_test, or x, y; `settings` as in a data.toml."""
    checked = make(name, **settings)
    return divided(open_arrays(arrays, checked, None, name), checked, seed, name)


def divided(source: Source, settings: Settings, seed: int, name: str) -> Data:
    """An open source as data: its parts, or parts cut off by seed, and what its inputs are normalized and changed by.

    Raises:
        BadInput: another task than the settings say, or inputs in which nothing can be seen.
        EmptyData: too few samples to be split.
    """
    notes = list(source.notes)
    train = source.parts["train"]
    rest = torch.arange(len(train.inputs[0]))
    if settings.task not in (None, source.task):
        raise BadInput(f"{name} is data for {source.task}, the data settings say {settings.task}. Correct task.")
    test_part = source.parts.get("test") or source.parts.get("val")
    if test_part is None:
        rest, test_index = cut(rest, settings.split.test, seed, name)
        test_part = train
        notes.append(
            f"There is no test part: {len(test_index)} of {len(rest) + len(test_index)} images were set aside, by seed {seed}."
        )
    else:
        test_index = torch.arange(len(test_part.inputs[0]))
        if "test" not in source.parts:
            notes.append("There is no test part: the validation part is the test data.")
    if "test" in source.parts and "val" in source.parts:
        held_part = source.parts["val"]
        held_index = torch.arange(len(held_part.inputs[0]))
        notes.append("Choices are made on the validation part; the test part is for measuring only.")
    else:
        rest, held_index = cut(rest, settings.split.held_out, seed + 1, name)
        held_part = train
        notes.append(f"{len(held_index)} training images are held out, by seed {seed}, for choices such as the best epoch.")
    if not len(test_index) or not len(held_index):
        raise EmptyData(f"{name} has an empty test or validation part. Fill it, or delete it to have one split off.")
    _refuse_constant(source, rest, seed, name)
    mean, std, inferred = _normalization(source, settings, rest, seed, notes)
    spec = DataSpec(
        source.shape,
        mean,
        std,
        source.classes,
        _augment(source, settings, notes),
        source.task,
        train.targets is not None,
        name,
        source.preparation,
        inferred,
        "normalize" if settings.normalize else "mean and std" if settings.mean is not None else "",
    )
    if not spec.labeled:
        labels = "" if settings.task else '; write task = "multilabel" into a data.toml if several labels may hold at once'
        notes.append(
            f"The images have no labels: quality is agreement with the dense model, fine-tuning is distillation{labels}."
        )

    def split(part: Part, index: Tensor) -> Split:
        return Split(part.inputs, part.targets, index, spec, settings.max_unreadable, source.workers)

    parts = (split(train, rest), split(held_part, held_index), split(test_part, test_index))
    return Data(*parts, spec, tuple(notes), own_test=test_part is not train)


def _whole_numbers(source: Source, index: Tensor) -> bool:
    """Rows of integers, as tokens are; pictures of integers have more axes."""
    return len(source.shape) == 1 and source.parts["train"].inputs[0].read(index[:1]).dtype in (torch.int32, torch.int64)


def _normalization(
    source: Source, settings: Settings, index: Tensor, seed: int, notes: list[str]
) -> tuple[tuple[float, ...], tuple[float, ...], bool]:
    """Mean and std for each channel, and whether they were measured here."""
    inferred = False
    channels = source.shape[0] if source.shape else 1
    chosen = settings.normalize or (source.preset if settings.mean is None and not source.ready else None)
    if settings.mean is not None and settings.std is not None:
        mean, std = settings.mean, settings.std
        notes.append(f"Normalization: mean {_list(mean)}, std {_list(std)}, as the data settings say.")
    elif chosen is not None:
        mean, std = PRESETS[chosen]
        notes.append(f"Normalization: that of {chosen}, mean {_list(mean)}, std {_list(std)}.")
    elif source.ready or source.task in ("image", "text"):
        mean, std = PRESETS["none"]
        why = {"image": ", usual for image to image; 8-bit values become 0-1", "text": ", inputs are numbers of tokens"}
        notes.append(f"Normalization: none{'' if source.ready else why[source.task]}.")
    elif _whole_numbers(source, index):
        mean, std = PRESETS["none"]
        notes.append(
            "Normalization: none, the inputs are whole numbers. If the model was trained with others, write mean and std."
        )
    else:
        mean, std = _measured(source, index, seed)
        if source.parts["train"].inputs[0].read(index[:1]).dtype != torch.uint8 and _standard(mean, std):
            mean, std = PRESETS["none"]
            notes.append("Normalization: none, the values have mean 0 and std 1 already.")
        else:
            inferred = True
            notes.append(
                f"Normalization inferred from training images: mean {_list(mean)}, std {_list(std)}. If the model was "
                f"trained with others, write mean and std into a data.toml."
            )
    if len(mean) not in (1, channels):
        raise BadInput(
            f"The normalization has {many(len(mean), 'value')}, the images have {many(channels, 'channel')}. "
            f"Give one value for each{', or channels = 3' if (len(mean), channels) == (3, 1) else ''}."
        )
    return (mean * channels, std * channels, inferred) if len(mean) == 1 else (mean, std, inferred)


def _refuse_constant(source: Source, index: Tensor, seed: int, name: str) -> None:
    """Refuse images in which nothing can be seen, as a decoder makes of a file that it does not understand.

    Raises:
        BadInput: every channel has one value only; names a file.
    """
    store = source.parts["train"].inputs[0]
    # Items of a user's own may be costly, and may be drawn anew each time.
    if not isinstance(store, Stored | Pictures):
        return
    numbers = _some(store, index, seed)[:FEW]
    ((some,),) = together([store], [numbers], source.workers)
    some = some[[number not in store.broken for number in numbers.tolist()]]
    if len(some) > 1 and bool((some.transpose(0, 1).flatten(1).diff(dim=1) == 0).all()):
        such = f" (such as {source.example})" if source.example else ""
        raise BadInput(
            f"The {len(some)} images of {name} that were looked at{such} have no variation: every channel has one value only. "
            f"Needed are images in which something can be seen; convert them to 8 bits, gray or RGB."
        )


def _some(store: Store, index: Tensor, seed: int) -> Tensor:
    """Numbers of the samples that the normalization is inferred from."""
    wanted = SAMPLE if isinstance(store, Stored) else FEW
    return index[torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))[:wanted]]


def _measured(source: Source, index: Tensor, seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over a seeded sample."""
    store = source.parts["train"].inputs[0]
    some = _some(store, index, seed)
    total = square = torch.zeros(source.shape[0], dtype=torch.float64)
    count = 0
    for (values,) in together([store], some.split(500), source.workers):
        x = scaled(values).transpose(0, 1).flatten(1)
        total, square, count = total + x.double().sum(1), square + x.double().square().sum(1), count + x.shape[1]
    mean = total / count
    std = (square / count - mean.square()).clamp_min(0).sqrt()
    std = torch.where(std > 1e-6, std, torch.ones_like(std))  # a constant channel stays constant
    return tuple(round(v, 4) for v in mean.tolist()), tuple(float(f"{v:.4g}") for v in std.tolist())


def _standard(mean: tuple[float, ...], std: tuple[float, ...]) -> bool:
    # 0.3: per-channel presets of other data leave such a rest, raw data in 0-1 or 0-255 is far away.
    return max(map(abs, mean)) < 0.3 and all(0.7 < v < 1.4 for v in std)


def _augment(source: Source, settings: Settings, notes: list[str]) -> Augment:
    """Flips and shifts by default: an eighth of the size, mirrored if colored; none where that would be wrong."""
    if settings.augment is not None:
        return Augment(settings.augment.flip, settings.augment.shift)
    if len(source.shape) != 3 or source.task not in ("classification", "segmentation") or source.ready:
        return Augment()
    chosen = Augment(source.shape[0] == 3, min(source.shape[1:]) // 8)
    flips = "flips and " if chosen.flip else ""
    notes.append(f"{CHANGED} by {flips}shifts up to {chosen.shift} pixels; [augment] in a data.toml says otherwise.")
    return chosen


def _list(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{v:g}" for v in values) + ")"
