"""What a `data.toml` may say. Everything else about the data is inferred and told.

source = "photos/"            # anything --data takes; a path counts from the folder of this file
task = "classification"       # or multilabel, segmentation, regression, image, text
size = [224, 224]             # height, width; images are resized to it
channels = 3
mean = [0.485, 0.456, 0.406]  # or: normalize = "imagenet"
std = [0.229, 0.224, 0.225]
classes = ["cat", "dog"]      # the order of the model's outputs
[augment]
flip = true
shift = 4                     # pixels; the border is padded
[split]
test = 0.2
held_out = 0.1
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from compress.errors import BadInput
from compress.user import files, wording
from compress.user.settings_table import SettingsTable
from compress.user.shard_paths import SUFFIXES

PRESETS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "none": ((0.0,), (1.0,)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashionmnist": ((0.2860,), (0.3530,)),
}


_LARGEST = 1e6
_LONGEST = 16_384  # pixels of a side
"""Of a mean, and of a standard deviation or its inverse."""


class AugmentSettings(SettingsTable):
    """Section [augment]."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    flip: bool = False
    shift: int = Field(0, ge=0, le=1024)


class SplitSettings(SettingsTable):
    """Section [split]: shares of one folder or array that has no such part of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    test: float = Field(0.2, gt=0, lt=1, description="of everything")
    held_out: float = Field(0.1, gt=0, lt=1, description="of what is left for training")


class ColumnSettings(BaseModel):
    """Section [columns]: which ones of a table on disk are used, where several might be."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    image: str | None = None
    label: str | None = None


class Settings(SettingsTable):
    """The fields of a data.toml; None means: infer, and say so."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    source: str = ""
    task: Literal["classification", "multilabel", "segmentation", "regression", "image", "text"] | None = None
    size: tuple[int, int] | None = None
    channels: Literal[1, 3] | None = None
    resize: Literal["crop", "stretch"] = "crop"
    upright: bool = Field(False, description="turn images as their EXIF orientation says; without it pixels are used as stored")
    layout: Literal["nhwc", "nchw"] | None = Field(None, description="axes of arrays of images")
    normalize: Literal["none", "imagenet", "cifar10", "cifar100", "mnist", "fashionmnist"] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: tuple[str, ...] | None = None
    augment: AugmentSettings | None = None
    columns: ColumnSettings = Field(default_factory=ColumnSettings)
    split: SplitSettings = Field(default_factory=lambda: SplitSettings(**{}))
    max_unreadable: float = Field(0.05, ge=0, lt=1, description="share of unreadable images that is put up with")
    workers: int | None = Field(None, ge=0, le=256, description="processes that read samples while the model computes")
    memory_gb: float = Field(1.0, gt=0, description="decode everything at the start if it fits into this")

    @field_validator("size", mode="before")
    @classmethod
    def _square(cls, value: Any) -> Any:
        return (value, value) if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _mean_goes_with_std(self) -> Settings:
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ValueError("mean and std go together, with one value per channel each")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("every std must be above 0")
        # Beyond that, what is normalized is infinite or all the same.
        if not all(abs(x) <= _LARGEST for x in (*(self.mean or ()), *(self.std or ()), *(1 / s for s in self.std or ()))):
            raise ValueError(f"mean is a number up to {_LARGEST:.0e}, and std one between {1 / _LARGEST:.0e} and that")
        if self.size is not None and not 1 <= min(self.size) <= max(self.size) <= _LONGEST:
            raise ValueError(f"the size is a number of pixels from 1 to {_LONGEST:,}, or [height, width]")
        if self.mean is not None and self.normalize is not None:
            raise ValueError("give either normalize or mean and std")
        return self


def make(where: str = "data settings", **values: Any) -> Settings:
    """Checked settings.

    Raises:
        BadInput: an unknown name or a value out of range; names the first one.
    """
    try:
        return Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            raise BadInput(f"{where}: {_unknown([str(part) for part in first['loc']])}") from error
        name = ".".join(str(part) for part in first["loc"])
        message = wording.needed(first)
        raise BadInput(f"{where}: {name + ' is ' + wording.quoted(first['input']) + '; ' if name else ''}{message}.") from error


def _unknown(place: list[str]) -> str:
    """What to say of a key, or of a key in a section, that does not exist."""
    sections: dict[str, type[BaseModel]] = {"augment": AugmentSettings, "split": SplitSettings, "columns": ColumnSettings}
    known = (sections[place[0]] if len(place) > 1 else Settings).model_fields
    close = difflib.get_close_matches(place[-1], known, n=1)
    remedy = f"Did you mean {close[0]}?" if close else f"Known are {', '.join(known)}."
    return f"There is no setting '{'.'.join(place)}'. {remedy}"


def from_toml(path: Path) -> Settings:
    """Read a data.toml; a source that is a path counts from the file's folder."""
    try:
        values = files.toml_in(path)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"The data settings {path} cannot be read ({files.told(error)}). Give a TOML file with at least source = ..."
        ) from error
    source = values.get("source", "")
    if not isinstance(source, str) or not source:
        raise BadInput(f'{path} names no data. Add source = "folder" (or .npz, digits, torchvision:NAME@DIR, module:factory).')
    name, at, folder = source.partition("@")
    if at and name.startswith("torchvision:"):
        values["source"] = f"{name}@{path.parent / folder}"
    elif source != "digits" and _is_beside(path.parent, source):
        values["source"] = str(path.parent / source)
    return make(str(path), **values)


def _is_beside(folder: Path, source: str) -> bool:
    """Whether a source is a path from that folder: there, a function in a file there, or shards by their pattern."""
    # Of os.path: what is no name of a file at all, or too long for one, is not there.
    there = os.path.exists(folder / source) or os.path.isfile(folder / source.rpartition(":")[0])
    return there or (source.endswith(SUFFIXES) and not source.startswith("~"))
