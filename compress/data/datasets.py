"""Data sets of others: `torchvision:NAME@DIR` and `module:factory`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import EpsImagePlugin
from torch import Tensor

from compress.data.arrays import open_arrays
from compress.data.listing import image_files
from compress.data.preparation import Preparation
from compress.data.settings import PRESETS, Settings
from compress.data.sources import Part, Source, named, unreadable_out
from compress.data.splits import Data
from compress.data.stores import Items, Store, Stored, to_tensor
from compress.data.targets import Converted, meaning
from compress.errors import BadInput, EmptyData
from compress.user import code, files


class _ByPillowAlone:
    """A data set whose pictures are read by Pillow alone: for PostScript, whatever a file is called, it starts Ghostscript."""

    def __init__(self, items: Any):
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, number: int) -> Any:
        before, EpsImagePlugin.gs_binary = EpsImagePlugin.gs_binary, False
        try:
            return self._items[number]
        finally:
            EpsImagePlugin.gs_binary = before

    def __getattr__(self, name: str) -> Any:
        if name == "_items":  # not there yet while a process of a pool unpickles this
            raise AttributeError(name)
        return getattr(self._items, name)


# fmt: off
_ONLY_READ = (
    "CIFAR10", "CIFAR100", "CLEVRClassification", "Country211", "DTD", "EMNIST", "EuroSAT", "FER2013", "FGVCAircraft",
    "FashionMNIST", "Flowers102", "Food101", "GTSRB", "ImageFolder", "Imagenette", "KMNIST", "LFWPeople", "MNIST",
    "Omniglot", "OxfordIIITPet", "QMNIST", "RenderedSST2", "SEMEION", "STL10", "SUN397", "SVHN", "VOCSegmentation",
)
# fmt: on
"""What opens by a folder alone, holds inputs and targets, and does nothing but read there.

Others of torchvision unpickle a file of the current folder (LSUN), unpack archives through links wherever they lead (Cityscapes,
ImageNet), unpack what they have not compared with a checksum, however much it becomes (USPS, StanfordCars, PCAM), or write into
the folder (PhotoTour, Caltech101), and a recipe or a data.toml of somebody else may name any.
"""


def open_torchvision(text: str, settings: Settings, shape: tuple[int, ...] | None) -> Source:
    """`NAME@DIR`: a data set class of torchvision whose files are in DIR; nothing is downloaded.

    Raises:
        BadInput: no such class, or its files are not in DIR.
    """
    from torchvision import datasets

    name, _, folder = text.partition("@")
    if name and name not in datasets.__all__:
        close = difflib.get_close_matches(name, _ONLY_READ, 3)
        hint = f"Did you mean {' or '.join(close)}?" if close else "Give one such as torchvision:CIFAR10@DIR."
        raise BadInput(f"torchvision has no data set '{name}'. {hint}")
    if not name or not folder:
        raise BadInput(f"The data is 'torchvision:{text}'; needed is torchvision:NAME@DIR, such as torchvision:CIFAR10@data.")
    if name not in _ONLY_READ:
        raise BadInput(
            f"torchvision:{name} needs more than a folder, or does more than read there; taken are {', '.join(_ONLY_READ)}. "
            f"Give a folder of images, or your own factory, module:function."
        )
    # torchvision would follow a link that leads in a circle without end, and one to `/` through all that there is.
    if image_files(files.source(folder), deep=True).again:
        raise BadInput(
            f"torchvision:{name} reads {folder}, in which a link leads to a folder that is there, or around it. Take it away."
        )
    maker: Any = getattr(datasets, name)
    known = inspect.signature(maker.__init__).parameters
    choices = [("train", {"train": True}), ("test", {"train": False})]
    if "train" not in known:
        choices = [("train", {"split": "train"}), ("val", {"split": "val"}), ("test", {"split": "test"})]
        choices = choices if "split" in known else [("train", {})]
    found: dict[str, Any] = {}
    for part, options in choices:
        try:
            found[part] = maker(**{"root": folder, **options})
        except Exception as error:  # files of strangers, looked at by code of others
            if part == "train":
                why = str(error).strip().splitlines() or [type(error).__name__]
                raise BadInput(
                    f"torchvision:{name} does not open in {folder} ({why[0]}). Download it there once, or correct DIR."
                ) from error
    arrays = _arrays(found)
    if arrays is None:
        found = {part: _ByPillowAlone(items) for part, items in found.items()}
        return from_datasets(found, settings, shape, f"torchvision:{name}", name.lower())
    source = open_arrays(arrays, settings, shape, f"torchvision:{name}")
    names = settings.classes or tuple(getattr(found["train"], "classes", ())) or source.classes
    preset = name.lower() if name.lower() in PRESETS else None
    made = source.preparation
    if made is not None and source.shape[0] == 3:
        made = replace(made, color="RGB")  # as every data set of torchvision keeps its pictures
    return replace(source, classes=names, preset=preset, preparation=made)


def open_factory(name: str, settings: Settings, shape: tuple[int, ...] | None) -> Source | Data:
    """`module:factory()`: a Data, arrays by name, one data set, (train, test), (train, val, test) or a dict of data sets.

    Raises:
        BadInput: the factory fails, or gives something else.
    """
    factory = code.function(name, "--data")
    try:
        made = factory()
    except Exception as error:  # user code may raise anything
        raise BadInput(
            f"The data factory {name} fails ({type(error).__name__}: {error}). It is called without arguments."
        ) from error
    if isinstance(made, Data):
        return made
    if isinstance(made, Mapping) and any(str(key).split("_")[0] == "x" for key in made):
        return open_arrays(made, settings, shape, name)
    if isinstance(made, tuple | list) and 2 <= len(made) <= 3 and all(_is_dataset(part) for part in made):
        made = dict(zip(("train", "test") if len(made) == 2 else ("train", "val", "test"), made, strict=True))
    elif _is_dataset(made) and not isinstance(made, Mapping):
        made = {"train": made}
    if not isinstance(made, Mapping) or "train" not in made or not all(_is_dataset(part) for part in made.values()):
        raise BadInput(
            f"The data factory {name} gives a {type(made).__name__}; needed is a compress.data.Data, arrays by name "
            f"(x_train, ...), a data set with length and items, (train, test), or a dict of these with 'train'."
        )
    return from_datasets(dict(made), settings, shape, name, None)


def _is_dataset(value: Any) -> bool:
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, str | Tensor | np.ndarray)


def _arrays(found: dict[str, Any]) -> dict[str, Any] | None:
    """The arrays inside the data sets, where they keep such."""
    arrays: dict[str, Any] = {}
    for part, dataset in found.items():
        images = getattr(dataset, "data", None)
        labels = getattr(dataset, "targets", getattr(dataset, "labels", None))
        if not isinstance(images, np.ndarray | Tensor) or labels is None:
            return None
        arrays |= {f"x_{part}": images, f"y_{part}": np.asarray(labels)}
    return arrays


def from_datasets(
    found: dict[str, Any], settings: Settings, shape: tuple[int, ...] | None, where: str, preset: str | None
) -> Source:
    """Map-style data sets by part; items are an input, or a pair of input (or tuple of inputs) and target.

    Raises:
        BadInput: another shape than the model's, or targets that do not suit the task.
        EmptyData: no training sample.
    """
    if not len(found["train"]):
        raise EmptyData(f"{where} has no training sample: its length is 0.")
    try:
        item = found["train"][0]
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # code of others, on files of others
        told = (str(error).strip() or "no message").splitlines()[0][:160]
        raise BadInput(f"{where} raises at its first item ({type(error).__name__}: {told}). Correct it.") from error
    pair = isinstance(item, tuple | list) and len(item) == 2
    first = item[0] if pair else item
    several = isinstance(first, tuple | list)
    sample = to_tensor(first[0] if several else first)
    if shape is not None and tuple(sample.shape) != tuple(shape):
        raise BadInput(
            f"The model takes inputs of {tuple(shape)}, {where} gives {tuple(sample.shape)}. Change the data set's transform."
        )
    parts = {
        name: Part(_inputs(dataset, pair, len(first) if several else 0), Items(dataset, lambda x: x[1]) if pair else None)
        for name, dataset in found.items()
    }
    total = sum(len(dataset) for dataset in found.values())
    # None unasked: a data set may hold what two processes cannot share, such as an open file.
    workers = settings.workers or 0
    notes = [f"Items of {where} are used as they come{'' if sample.dtype == torch.uint8 else ', already normalized'}."]
    if total * sample.numel() * sample.element_size() <= settings.memory_gb * 1e9:
        # A data set with random transforms would be frozen in its first draw: augmentation belongs to [augment].
        parts = {name: unreadable_out(part, where, workers)[0] for name, part in parts.items()}
        notes.append("They were read once and kept: random transforms of the data set act only once.")
    task, parts = _task(parts, to_tensor(item[1]), settings, where, notes) if pair else (settings.task or "classification", parts)
    classes = settings.classes or tuple(map(str, getattr(found["train"], "classes", ()))) or None
    if task != "text":
        classes, told = named(_targets(parts), task, classes, where)
        notes += told
    ready = sample.dtype != torch.uint8
    return Source(
        parts,
        tuple(sample.shape),
        task,
        classes,
        preset if preset in PRESETS else None,
        ready,
        tuple(notes),
        preparation=Preparation("items"),
        workers=workers,
    )


def _inputs(dataset: Any, pair: bool, several: int) -> tuple[Store, ...]:
    def first(item: Any) -> Any:
        return item[0] if pair else item

    if not several:
        return (Items(dataset, first),)
    return tuple(Items(dataset, lambda item, i=i: first(item)[i]) for i in range(several))


def _some(store: Store) -> Tensor:
    return store.read(torch.arange(len(store))[: None if isinstance(store, Stored) else 256])


def _task(
    parts: dict[str, Part], sample: Tensor, settings: Settings, where: str, notes: list[str]
) -> tuple[str, dict[str, Part]]:
    """The task, and the parts with targets in its form."""
    said = meaning(_targets(parts), where) if settings.task in (None, "classification") else None
    if said is None or settings.task not in (None, said.task):
        return settings.task or _task_of(sample), parts
    notes.append(said.note)
    # Not read again where it is in memory.
    return said.task, {
        name: Part(part.inputs, None if part.targets is None else _converted(part.targets, said.convert))
        for name, part in parts.items()
    }


def _converted(store: Store, convert: Callable[[Tensor], Tensor]) -> Store:
    return Stored(convert(store.values)) if isinstance(store, Stored) else Converted(store, convert)


def _targets(parts: dict[str, Part]) -> list[Tensor]:
    """Those of the training part first."""
    order = sorted(parts, key=lambda name: name != "train")
    return [_some(targets) for name in order if (targets := parts[name].targets) is not None]


def _task_of(target: Tensor) -> str:
    if target.ndim == 0:
        return "regression" if target.is_floating_point() else "classification"
    return {1: "regression", 2: "segmentation"}.get(target.ndim, "image")
