"""Files of many samples by name: what train-{0000..0146}.tar and data/*.parquet stand for. No torch: told before it is loaded."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from compress.errors import BadInput
from compress.user import files
from compress.user.wording import many

MOST = 100_000
_BRACES, _WILD, _PATTERNS = 20, 2, 100
KINDS = (".tar", ".parquet", ".arrow")
SUFFIXES = (*KINDS, ".tar.gz", ".tgz")
IN_FOLDERS = ("*.tar", "*.parquet", "data/*.parquet")


def shards(text: str) -> list[Path]:
    """The files of samples that a name stands for; [] if none.

    Args:
        text: `train-{0000..0146}.tar`, `shards/*.parquet`, one such file, a folder of them, or one that Hugging Face's
            `save_to_disk` wrote.

    Raises:
        BadInput: one of them is not there, is compressed, or of another kind than the others.
    """
    files.here(text)
    path = files.at_home(text)
    if os.path.isdir(path):
        return _inside(path)
    if not text.rstrip("}").endswith(SUFFIXES):
        return []
    _require_few(text)
    most, what = (_PATTERNS, "patterns with a *") if "*" in text else (MOST, "files")
    found = [files.at_home(one) for one in itertools.islice(_expanded(text), most + 1)]
    if len(found) > most:
        raise BadInput(f"'{text[:200]}' stands for more than {most:,} {what}. Give fewer.")
    found = [one for shard in found for one in (sorted(map(Path, glob.glob(str(shard)))) if "*" in str(shard) else [shard])]
    if lacking := [str(one) for one in found if not os.path.isfile(one)] or ([text] if not found else []):
        raise BadInput(f"{many(len(lacking), 'file')} of '{text}' cannot be found: {', '.join(lacking[:5])}. Correct the name.")
    if packed := [str(one) for one in found if not one.name.endswith(KINDS)]:
        raise BadInput(f"{packed[0]} is compressed; needed are plain .tar files, in which a sample can be read. Unpack it.")
    if len(kinds := sorted({one.suffix for one in found})) > 1:
        raise BadInput(f"'{text}' stands for {' and '.join(kinds)} files; needed are files of one kind. Give one of the two.")
    return list(dict.fromkeys(found))


def _require_few(text: str) -> None:
    """Refuse patterns that stand for more than anybody has, before they are gone through.

    Raises:
        BadInput: one does.
    """
    folders = text.replace("\\", "/").split("/")[:-1]
    wild = [folder for folder in folders if "*" in folder]
    if text.count("{") > _BRACES:
        raise BadInput(f"'{text[:200]}' has more than {_BRACES} braces. Give fewer.")
    if len(wild) > _WILD or (wild and ".." in folders):
        raise BadInput(f"'{text[:200]}' looks through too many folders. Needed is a * in the file's name, or in {_WILD} folders.")


def _inside(folder: Path) -> list[Path]:
    """Those of a folder; none where pictures in folders stand beside them."""
    if (folder / "dataset_dict.json").is_file():
        return sorted(folder.glob("*/data-*.arrow"))
    if (folder / "state.json").is_file():
        return sorted(folder.glob("data-*.arrow"))
    for pattern in IN_FOLDERS:
        if found := sorted(folder.glob(pattern)):
            return found if "/" in pattern or not any(entry.is_dir() for entry in folder.iterdir()) else []
    return []


def _expanded(text: str) -> Iterator[str]:
    """As a shell does braces: {0000..0146} and {train,val}, one in another too."""
    inner = re.search(r"\{([^{}]*)\}", text)
    if inner is None:
        yield text
        return
    ends = re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", inner[1])
    if ends:
        width = len(ends[1]) if ends[1].startswith("0") else 0
        first, last = int(ends[1]), int(ends[2])
        if first > last:  # none at all, of which as many as there are others would be looked for
            raise BadInput(f"A name counts from {first} to {last}; needed is a smaller number first, then a larger one.")
        choices = (f"{number:0{width}}" for number in range(first, last + 1))
    else:
        choices = iter(inner[1].split(","))
    for choice in choices:
        yield from _expanded(text[: inner.start()] + choice + text[inner.end() :])
