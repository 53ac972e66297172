"""Shards of WebDataset: plain tar files in which the members of a sample stand one behind the other.

train-0000.tar:  0001.jpg  0001.cls  0002.jpg  0002.cls  ...       key.jpg (or another picture), key.cls: number of the class

A shard is gone through once, and what was found is remembered; a sample is then read where it lies, in any order.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import re
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError

from compress.data.image_source import Pictured, alike, open_pictures
from compress.data.images import SUFFIXES
from compress.data.part_names import by_part
from compress.data.settings import Settings
from compress.data.sources import Source
from compress.data.stores import name_some
from compress.errors import BadInput, EmptyData
from compress.user.cache_folder import cache_folder
from compress.user.files import content, told
from compress.user.wording import many
from exporters import atomic
from exporters.standalone.checksums import Member

BLOCK = 512  # bytes; a tar ends with two blocks of zeros
MOST_OF_A_LABEL = 32  # bytes: beyond it a .cls is no number


class Sample(NamedTuple):
    """A picture in a shard: the key of its sample, its name there, where its bytes begin, how many; text of the class."""

    name: str
    begin: int
    size: int
    label: str | None


class _Found(NamedTuple):
    """Of one shard: its size and time when it was gone through, its samples, and how many members are none of those."""

    size: int
    changed: int
    samples: list[Sample]
    others: int


_REMEMBERED = TypeAdapter(_Found)


@dataclass(frozen=True)
class Members:
    """Pictures in shards; each is read for itself, so that any order and any number of processes will do."""

    places: Sequence[tuple[Path, Sample]]

    def __len__(self) -> int:
        return len(self.places)

    def name(self, number: int) -> str:
        """Shard and member."""
        shard, sample = self.places[number]
        return f"{shard}:{sample.name}"

    def file(self, number: int) -> io.BytesIO:
        """Its bytes."""
        shard, sample = self.places[number]
        with shard.open("rb") as opened:
            opened.seek(sample.begin)
            return io.BytesIO(opened.read(sample.size))


def open_shards(
    paths: Sequence[Path], settings: Settings, shape: tuple[int, ...] | None, draws: torch.Generator, where: str
) -> Source:
    """Shards as a source.

    Args:
        paths: parts are told by words of their names, train, val and test.
        settings: what a data.toml says.
        shape: (channels, height, width) that the model takes, where it is known.
        draws: which headers are looked at.
        where: what messages call them.

    Raises:
        BadInput: a shard is no tar or cut off, a sample has two pictures, or only some have a class.
        EmptyData: no picture.
    """
    found = {path: _read(path) for path in paths}
    parts = {part: [(path, one) for path in some for one in found[path].samples] for part, some in by_part(paths).items()}
    if not parts["train"]:
        kinds = ", ".join(sorted(suffix[1:] for suffix in SUFFIXES))
        raise EmptyData(f"{where} has no picture to train on. Needed are members such as 0001.jpg ({kinds}) and 0001.cls.")
    others = sum(one.others for one in found.values())
    notes = [f"{many(others, 'member')} of {where} are neither pictures nor .cls and were left out."] if others else []
    pictured = {name: Pictured(Members(places), _labels(places, where)) for name, places in parts.items() if places}
    kept, told_of = alike(pictured, where)
    return open_pictures(kept, settings.classes, settings, shape, draws, where, [*notes, *told_of])


def _labels(places: Sequence[tuple[Path, Sample]], where: str) -> torch.Tensor | None:
    with_one = sum(sample.label is not None for _, sample in places)
    if not with_one:
        return None
    if with_one < len(places):
        bare = [f"{path}:{sample.name}" for path, sample in places if sample.label is None]
        raise BadInput(f"{len(bare)} of {len(places)} pictures of {where} have no .cls: {name_some(bare)}. Add them, or none.")
    for path, sample in places:
        if not re.fullmatch(r"\s*-?\d{1,18}\s*", sample.label or ""):
            raise BadInput(f"The .cls of {path}:{sample.name} is {sample.label!r}; needed is the number of a class.")
    return torch.tensor([int(sample.label or 0) for _, sample in places])


def _read(path: Path) -> _Found:
    """Samples of a shard, remembered from last time if it is the same file still."""
    stat = path.stat()
    kept = cache_folder() / "shards" / f"{hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]}.json"
    with suppress(OSError, ValidationError):
        known = _REMEMBERED.validate_json(content(kept))
        same = (known.size, known.changed) == (stat.st_size, stat.st_mtime_ns)
        if same and all(0 <= one.begin <= one.begin + one.size <= stat.st_size and one.size >= 0 for one in known.samples):
            return known
    found = _Found(stat.st_size, stat.st_mtime_ns, *_gone_through(path, stat.st_size))
    # Where nothing can be kept, the next time takes as long.
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        atomic.write(kept, _REMEMBERED.dump_json(found))
    return found


def _gone_through(path: Path, size: int) -> tuple[list[Sample], int]:
    samples, others, end = list[Sample](), 0, 0
    try:
        with tarfile.open(path, "r:", tarinfo=Member) as opened:
            for key, members in itertools.groupby(opened, _key):
                pictures, label = list[tarfile.TarInfo](), None
                for member in members:
                    end = max(end, member.offset_data + member.size)
                    kind = member.name[len(key) :].lower()
                    if not member.isreg() or member.issparse() or end > size:
                        others += 1
                    elif kind in SUFFIXES:
                        pictures.append(member)
                    elif kind == ".cls" and (text := opened.extractfile(member)) is not None:
                        if label is not None:
                            raise BadInput(f"A sample of {path} has two classes ({member.name}); needed is one. Leave one out.")
                        label = text.read(MOST_OF_A_LABEL).decode("ascii", "replace")
                    else:
                        others += 1
                if len(pictures) > 1:
                    names = " and ".join(member.name for member in pictures[:2])
                    raise BadInput(f"A sample of {path} has {len(pictures)} pictures ({names}); needed is one. Leave one out.")
                samples += [Sample(one.name, one.offset_data, one.size, label) for one in pictures]
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        raise BadInput(f"The shard {path} cannot be read ({told(error)}). Needed is a plain tar file; make it anew.") from error
    if end + BLOCK > size:
        raise BadInput(f"The shard {path} is cut off: it ends within its last members. Copy it again.")
    return samples, others


def _key(member: tarfile.TarInfo) -> str:
    """Up to the first dot of the name, folders included."""
    folder, name = os.path.split(member.name)
    return os.path.join(folder, name.partition(".")[0])
