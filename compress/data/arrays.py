"""Arrays: Keras-style .npz files, arrays in memory, scikit-learn's digits.

x_train, y_train, x_test, y_test   (also x_val, y_val); or x, y, split by seed; labels and test part may be absent
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compress.data.npz import read_arrays
from compress.data.preparation import Preparation
from compress.data.settings import Settings
from compress.data.sources import Part, Source, named
from compress.data.splits import cut
from compress.data.stores import WHOLE, Stored, channels_first
from compress.data.targets import meaning, zeros_and_ones
from compress.errors import BadInput, EmptyData, extra
from compress.user.wording import many

_TESTED = 0.2  # of the digits
PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def open_npz(path: Path, settings: Settings, shape: tuple[int, ...] | None) -> Source:
    """An .npz file as a source.

    Raises:
        BadInput: no .npz, a damaged one, arrays that need pickle, or none of the names that are known.
    """
    needed = "Needed are plain arrays x_train, y_train, x_test, y_test."
    arrays = read_arrays(path, "", needed)
    if isinstance(arrays, np.ndarray):
        raise BadInput(f"{path} is one array without a name. {needed}")
    return open_arrays(arrays, settings, shape, str(path))


def open_digits(settings: Settings, shape: tuple[int, ...] | None) -> Source:
    """scikit-learn's 1797 gray images of 8x8, a fifth of them to test on.

    They are the same for every seed: a model that was trained on the others has not seen them.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise BadInput(f"The data 'digits' comes with scikit-learn, which is not installed: {extra('demo')}.") from error
    found: Any = load_digits()
    images = (np.asarray(found.images) * (255 / 16)).round().astype(np.uint8)  # 0-16 in the original
    train, test = (index.numpy() for index in cut(torch.arange(len(images)), _TESTED, 0, "digits"))
    labels = np.asarray(found.target)
    arrays = {"x_train": images[train], "y_train": labels[train], "x_test": images[test], "y_test": labels[test]}
    return open_arrays(arrays, settings, shape, "digits")


def open_arrays(
    arrays: Mapping[str, Any], settings: Settings, shape: tuple[int, ...] | None, where: str, *, as_given: bool = False
) -> Source:
    """Arrays by Keras' names as a source; `as_given`: others than 8-bit images are what the model takes.

    Raises:
        BadInput: no x or x_train, lengths that differ, values that are not finite, a shape that is not the model's.
        EmptyData: arrays of length 0.
    """
    tensors = {name: _tensor(value, name, where) for name, value in arrays.items() if name != "classes"}
    inputs = {part: tensors[f"x_{key}"] for key, part in PARTS.items() if f"x_{key}" in tensors}
    targets = {part: tensors[f"y_{key}"] for key, part in PARTS.items() if f"y_{key}" in tensors}
    whole = "train" not in inputs and "x" in tensors
    if whole:
        inputs["train"] = tensors["x"]
        targets |= {"train": tensors["y"]} if "y" in tensors else {}
    if "train" not in inputs:
        raise BadInput(
            f"{where} has the arrays {', '.join(arrays) or 'none'}; needed are x_train, or x, and where there are labels y."
        )
    if not len(inputs["train"]):
        raise EmptyData(f"{where} has no training image: x_train has length 0.")
    idle = tensors.keys() - {f"{kind}_{key}" for kind in "xy" for key in PARTS} - ({"x", "y"} if whole else set())
    notes = [f"Arrays that are not used: {', '.join(sorted(idle)[:5])}, beside {'x' if whole else 'x_train'}."] if idle else []
    ready = as_given and inputs["train"].dtype != torch.uint8
    plain = ready or _no_images(inputs, shape)
    if plain:
        _refuse_several_shapes(inputs, where)
        sample = "x".join(map(str, inputs["train"].shape[1:])) or "one number"
        said = "" if ready else " as the input shape says"
        notes.append(f"The arrays are used as they are, samples of {sample}{said}, without normalization.")
    else:
        inputs = _as_images(inputs, settings, shape, where, notes)
    found = tuple(next(iter(inputs.values())).shape[1:])
    for name, target in targets.items():
        if name in inputs and len(target) != len(inputs[name]):
            raise BadInput(
                f"{where} has {many(len(inputs[name]), 'image')} but {many(len(target), 'label')} in '{name}'. "
                "Needed is one for each."
            )
    if targets and not inputs.keys() <= targets.keys():
        lacking = inputs.keys() - targets.keys()
        raise BadInput(f"{where} has labels for some parts only; missing for: {', '.join(sorted(lacking))}. Give all or none.")
    task, targets = _task(inputs["train"], targets, settings, where, notes)
    if task == "text":
        inputs = {name: x.float() for name, x in inputs.items()}  # numbers of tokens, not brightness
    names = settings.classes or (tuple(map(str, np.asarray(arrays["classes"]).tolist())) if "classes" in arrays else None)
    every = [targets["train"], *(y for name, y in targets.items() if name != "train")] if targets else []
    classes, told = named(every, task, names, where)
    parts = {name: Part((Stored(x),), Stored(targets[name]) if targets else None) for name, x in inputs.items()}
    gray = len(found) == 3 and found[0] == 1
    made = Preparation("arrays", "gray" if gray else None, "stretch" if settings.size and len(found) == 3 else None)
    return Source(parts, found, task, classes, notes=(*notes, *told), preparation=made, ready=plain)


def _tensor(value: Any, name: str, where: str) -> Tensor:
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
    else:
        array = np.asarray(value)
        if array.dtype.kind not in "buif":
            raise BadInput(f"{where}: the array {name} holds {array.dtype}, needed are numbers.")
        # Only signed types beyond 8 bits exist for indexing and arithmetic everywhere in torch.
        array = array.astype(np.int64) if array.dtype.kind in "ui" and array.dtype.itemsize > 1 else array
        tensor = torch.from_numpy(np.ascontiguousarray(array.astype(np.float32) if array.dtype.kind == "f" else array))
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise BadInput(f"{where}: the array {name} holds NaN or infinite values. Clean it first.")
    return tensor


def _no_images(inputs: dict[str, Tensor], shape: tuple[int, ...] | None) -> bool:
    """Sequences, volumes and the like: the model is said to take just these axes, which are not those of an image or a row."""
    return shape is not None and len(shape) not in (1, 3) and all(tuple(x.shape[1:]) == shape for x in inputs.values())


def _as_images(
    inputs: dict[str, Tensor], settings: Settings, shape: tuple[int, ...] | None, where: str, notes: list[str]
) -> dict[str, Tensor]:
    """All parts as (n, c, h, w), of the wanted size; vectors (n, features) stay as they are."""
    first = inputs["train"]
    if first.ndim == 4:
        last = settings.layout == "nhwc" or (settings.layout is None and first.shape[-1] in (1, 3, 4) and not _fits(first, shape))
        notes.append(
            f"The axes of the arrays are taken as n, {'height, width, channels' if last else 'channels, height, width'}."
        )
        inputs = {
            name: x.permute(0, 3, 1, 2).clone(memory_format=torch.contiguous_format) if last and x.ndim == 4 else x
            for name, x in inputs.items()
        }
    elif first.ndim == 3:
        inputs = {name: x[:, None] for name, x in inputs.items()}
    elif first.ndim != 2:
        raise BadInput(f"{where}: x_train has {first.ndim} axes; needed are n,h,w or n,h,w,c or n,c,h,w.")
    if settings.channels == 3 and inputs["train"].ndim == 4 and inputs["train"].shape[1] == 1:
        notes.append("Grey images are repeated over 3 channels.")
        inputs = {name: x.expand(-1, 3, -1, -1).contiguous() for name, x in inputs.items()}
    if settings.channels == 1 and inputs["train"].ndim == 4 and inputs["train"].shape[1] == 3:
        notes.append("Colored images are made gray.")
        inputs = {name: _gray(x) for name, x in inputs.items()}
    if settings.size is not None and tuple(inputs["train"].shape[2:]) != settings.size:
        notes.append(f"Images are resized to {settings.size[0]}x{settings.size[1]}.")
        inputs = {name: _resized(x, settings.size) for name, x in inputs.items()}
    _refuse_several_shapes(inputs, where)
    found = tuple(inputs["train"].shape[1:])
    if shape is not None and tuple(shape) != found:
        raise BadInput(
            f"The input shape is {'x'.join(map(str, shape))}, {where} has {'x'.join(map(str, found))}. Correct --input-shape, "
            f"or leave it out; or write size = [H, W] or channels = 1 or 3 into a data.toml to convert the data."
        )
    if not settings.size and len(found) == 3:
        notes.append(f"The input shape {'x'.join(map(str, found))} is that of the arrays.")
    return inputs


def _refuse_several_shapes(inputs: dict[str, Tensor], where: str) -> None:
    shapes = {tuple(x.shape[1:]) for x in inputs.values()}
    if len(shapes) > 1:
        raise BadInput(f"{where} has parts of several shapes: {sorted(shapes)}. Needed is one shape.")


def _gray(images: Tensor) -> Tensor:
    """Luma of colored images (n, 3, h, w), by the weights of ITU-R BT.601, in their own type."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    parts = ((part.float() * weights).sum(1, keepdim=True) for part in images.split(1000))  # in parts: floats need the room
    return torch.cat([part if images.is_floating_point() else part.round().to(images.dtype) for part in parts])


def _fits(first: Tensor, shape: tuple[int, ...] | None) -> bool:
    """The array is channels-first: it has the model's shape as it is, or only its second axis can be channels."""
    return tuple(first.shape[1:]) == shape or (shape is None and first.shape[1] in (1, 3, 4) and first.shape[-1] == 4)


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    # Chunks, because the float copies are four times as large as the images.
    chunks = [functional.interpolate(x.float(), size, mode="bilinear", antialias=True) for x in images.split(1000)]
    return torch.cat([x.round().to(images.dtype) if images.dtype == torch.uint8 else x for x in chunks])


def _task(
    inputs: Tensor, targets: dict[str, Tensor], settings: Settings, where: str, notes: list[str]
) -> tuple[str, dict[str, Tensor]]:
    """The task and the targets in its form: class numbers, masks, labels, values, images or numbers of tokens."""
    if not targets:
        return settings.task or "classification", targets
    first = targets["train"]
    # A text may have two tokens only.
    tokens = inputs.ndim == 2 and inputs.shape == first.shape and not inputs.is_floating_point() and not first.is_floating_point()
    asked, said = settings.task or ("text" if tokens else None), None
    if asked in (None, "classification", "segmentation"):
        said = meaning(list(targets.values()), where)
    if said is not None and asked in (None, said.task):
        notes.append(said.note)
        return said.task, {name: said.convert(y) for name, y in targets.items()}
    if first.ndim == 2 and first.shape[1] == 1 and not first.is_floating_point() and asked in (None, "classification"):
        targets = {name: y[:, 0] for name, y in targets.items()}
    elif first.ndim == 4 and first.shape[-1] == 1 and asked == "segmentation":
        targets = {name: y[..., 0] for name, y in targets.items()}
    elif first.ndim == 1 and asked == "multilabel":
        targets = {name: y[:, None] for name, y in targets.items()}
    first = targets["train"]
    whole = not first.is_floating_point()
    guess = {1: "classification" if whole else "regression", 2: "regression", 3: "segmentation" if whole else "image", 4: "image"}
    task = asked or guess.get(first.ndim, "regression")
    if settings.task is None:
        notes.append(
            f"The task is taken as {task}, from targets of {'whole numbers' if whole else 'reals'} with {first.ndim} axes."
        )
    return task, _in_form(task, targets)


def _in_form(task: str, targets: dict[str, Tensor]) -> dict[str, Tensor]:
    """Targets as their task has them.

    Raises:
        BadInput: they are of another kind.
    """
    first = targets["train"]
    axes = {"classification": (1,), "segmentation": (3,), "image": (3, 4), "text": (2,), "multilabel": (2,)}.get(
        task, (1, 2, 3, 4)
    )
    fits = all(zeros_and_ones(y) for y in targets.values()) if task == "multilabel" else True
    if first.ndim not in axes or not fits or (task in WHOLE and not bool((first == first.long()).all())):
        kinds = {"classification": "n class numbers", "segmentation": "n,h,w class numbers", "image": "n images"}
        kinds |= {"text": "n,t numbers of tokens", "multilabel": "n,k zeros and ones"}
        raise BadInput(f"The targets of shape {tuple(first.shape)} do not suit the task {task}: needed are {kinds[task]}.")
    if task == "image":
        targets = {name: y[:, None] if y.ndim == 3 else _as_channels_first(y) for name, y in targets.items()}
    elif task == "regression":
        targets = {name: y.float()[:, None] if y.ndim == 1 else y.float() for name, y in targets.items()}
    elif task == "multilabel":
        targets = {name: y.to(torch.uint8) for name, y in targets.items()}
    else:
        targets = {name: y.long() if task in ("classification", "text") else y for name, y in targets.items()}
    return targets


def _as_channels_first(images: Tensor) -> Tensor:
    last = images.shape[-1] in (1, 3, 4) and images.shape[1] not in (1, 3, 4)
    return channels_first(images) if last else images
