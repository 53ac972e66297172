"""The names in a model.compressed folder, and the checksums by which damage to it is found.

A flipped bit in the weights is a model like any other: only a checksum tells it from the one that was saved. `SHA256SUMS` is what
`sha256sum -c SHA256SUMS` reads.
"""

from __future__ import annotations

import os
from pathlib import Path

from compress.errors import BadInput
from exporters.standalone.checksums import SUMS, sha256

GRAPH, WEIGHTS = "graph.json", "weights.safetensors"
FILES = (GRAPH, WEIGHTS, SUMS)
NO_SUMS = (
    f"The folder has no {SUMS}, as older versions wrote it: damage to its files could not be looked for. Save the model again."
)


def listed(folder: Path) -> str:
    """What `SHA256SUMS` has to say of the files in the folder."""
    return "".join(f"{sha256(folder / name)}  {name}\n" for name in (GRAPH, WEIGHTS))


def compare(folder: Path) -> bool:
    """Whether the folder has checksums, all of which match.

    Raises:
        BadInput: a file does not match, or the list cannot be read.
    """
    path = folder / SUMS
    # lexists: a link that leads nowhere is damage, and no older version's folder.
    if not os.path.lexists(path):
        return False
    try:
        expected = listed(folder)
        # One byte more than there can be: a longer file differs, however long it is.
        found = _start(path, len(expected) + 1)
    except OSError as error:
        raise BadInput(f"{folder} cannot be compared with its checksums ({error.strerror}). {_REMEDY}") from error
    if found == expected.encode():
        return True
    wrong = [name for name, line in zip((GRAPH, WEIGHTS), expected.splitlines(), strict=True) if line.encode() not in found]
    raise BadInput(f"{folder / (wrong or [SUMS])[0]} does not match its checksum in {SUMS}. {_REMEDY}")


_REMEDY = "Copy it again, or save the model again."


def _start(path: Path, count: int) -> bytes:
    # A pipe would be waited for.
    if not path.is_file():
        raise BadInput(f"{path} is no plain file. {_REMEDY}")
    with path.open("rb") as file:
        return file.read(count)
