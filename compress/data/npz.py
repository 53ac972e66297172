"""Files of arrays, opened without running code from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from compress.errors import BadInput

LARGE, INFLATION = 2**30, 100
"""Bytes up to which arrays may be packed as well as they like, and how many times smaller larger ones may be in the file."""


def read_arrays(path: Path, what: str, needed: str) -> dict[str, np.ndarray] | np.ndarray:
    """The arrays of a .npz by their names, or the one of a .npy.

    Args:
        path: of the file.
        what: it is, in front of its name in a refusal.
        needed: behind the reason of a refusal.

    Raises:
        BadInput: no such file, a damaged one, one whose arrays do not fit into memory, or arrays that need pickle.
    """
    # A pipe would be waited for without end.
    if path.exists() and not path.is_file():
        raise BadInput(f"{what}{path} is no regular file. {needed}")
    try:
        with path.open("rb") as file:
            loaded: Any = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            whole, packed = sum(one.file_size for one in loaded.zip.infolist()), max(path.stat().st_size, 1)
            if whole > LARGE and whole > INFLATION * packed:
                raise ValueError(
                    f"{packed / 1e6:.0f} MB hold arrays of {whole / 1e9:.1f} GB; save them by np.savez, uncompressed"
                )
            return {name: np.asarray(loaded[name]) for name in loaded.files}
    except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds over damaged bytes
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise BadInput(f"{what}{path} cannot be read as .npz ({said}). {needed}") from error
