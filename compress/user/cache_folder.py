"""The one folder of ours outside of what a command is told to write: measured times, and what libraries want to keep."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from compress.errors import BadInput
from compress.user import files

CACHE = "COMPRESS_CACHE"
_LIBRARIES = {
    "TORCHINDUCTOR_CACHE_DIR": "torchinductor",  # torch makes it in the temporary folder, by importing torch.export
    "MPLCONFIGDIR": "matplotlib",  # its list of fonts
}
"""Variable of a library -> our folder for it."""


def cache_folder() -> Path:
    """Where it is; nothing is made.

    Raises:
        BadInput: the variable names storage that is no file system.
    """
    folder = Path(os.environ.get(CACHE) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "compress"))
    try:
        files.here(folder)
        os.stat(folder)
    except OSError as error:
        # All else is a folder that can be made, or one in which nothing is kept.
        if error.errno == errno.ENAMETOOLONG:
            raise BadInput(f"The cache folder ({CACHE}) has too long a name: {str(folder)[:80]}... Give a shorter one.") from None
    except BadInput as error:
        raise BadInput(f"The cache folder ({CACHE}): {error}") from None
    return folder


def gather() -> None:
    """Let libraries keep their caches in ours. For the command line only: in a program of others, that is theirs to say."""
    folder = cache_folder().absolute()
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    # Where nothing can be written, libraries have ways of their own.
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        return
    for variable, name in _LIBRARIES.items():
        os.environ.setdefault(variable, str(folder / name))
