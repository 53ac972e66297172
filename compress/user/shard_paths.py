"""Shards by name: what train-{0000..0146}.tar and shards/*.tar stand for. No torch: told before anything is imported."""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from compress.errors import BadInput
from compress.user.wording import many

MOST = 100_000
SUFFIXES = (".tar", ".tar.gz", ".tgz")


def shards(text: str) -> list[Path]:
    """The shards that `train-{0000..0146}.tar`, `shards/*.tar`, one tar file or a folder of nothing else stand for; [] if none.

    Raises:
        BadInput: one of them is not there, or is compressed.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        inside = sorted(path.glob("*.tar"))
        return inside if inside and not any(entry.is_dir() for entry in path.iterdir()) else []
    if not text.endswith(SUFFIXES):
        return []
    found = [Path(one).expanduser() for one in itertools.islice(_expanded(text), MOST + 1)]
    if len(found) > MOST:
        raise BadInput(f"'{text}' stands for more than {MOST:,} shards. Give fewer.")
    found = [one for shard in found for one in (sorted(map(Path, glob.glob(str(shard)))) if "*" in str(shard) else [shard])]
    if lacking := [str(one) for one in found if not one.is_file()] or ([text] if not found else []):
        raise BadInput(
            f"{many(len(lacking), 'shard')} of '{text}' cannot be found: {', '.join(lacking[:5])}. Correct the numbers."
        )
    if packed := [str(one) for one in found if not one.name.endswith(".tar")]:
        raise BadInput(f"{packed[0]} is compressed; needed are plain .tar files, in which a sample can be read. Unpack it.")
    return list(dict.fromkeys(found))


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
        choices = (f"{number:0{width}}" for number in range(first, last + 1))
    else:
        choices = iter(inner[1].split(","))
    for choice in choices:
        yield from _expanded(text[: inner.start()] + choice + text[inner.end() :])
