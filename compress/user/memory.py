"""Too little memory: how such an error is told from others, and a limit in which nothing would even start.

Libraries tell it in words of their own. Where one cannot go on at all it ends the process, which no `except` sees: so a limit on
the address space (`ulimit -v`) is tried out before they are loaded, in a process that may end that way.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence

from compress.errors import NotEnoughMemory

RESERVE = 512 * 2**20
"""Bytes to work in, beside what the libraries map."""
_LOADED = "import torch, onnx, onnxruntime, compress.api"
_WORDS = (
    "out of memory",
    "not enough memory",
    "cannot allocate memory",
    "can't allocate memory",
    "unable to allocate",
    "failed to allocate memory",
    "bad_alloc",
    "bad allocation",
    "failed to map segment",
)
_LIMITED_WORDS = ("could not create a primitive", "can't start new thread", "resource temporarily unavailable")
"""What has other reasons, too, and is taken for this one where the address space is limited."""


def short(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that there is too little memory."""
    words = _WORDS if limit() is None else _WORDS + _LIMITED_WORDS
    return any(isinstance(one, MemoryError) or any(w in str(one).lower() for w in words) for one in _chain(error))


def refusal(what: str, done: Sequence[str], error: BaseException) -> NotEnoughMemory:
    """What is said where a run, or a part of it, had too little; `done` are the stages on disk."""
    told = str(error).strip().partition("\n")[0][:200] or type(error).__name__
    return NotEnoughMemory(
        f"{what} needs more memory than there is ({told}). Free some, or raise the limit; finished stages are kept "
        f"({', '.join(done) or 'none'}): add --resume to go on. A run with a smaller --batch-size or --calibration needs less."
    )


def limit() -> int | None:
    """Bytes of address space that this process may have; None for any number."""
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def check() -> None:
    """Try out whether the libraries can be loaded; costs nothing where the address space has no limit.

    Raises:
        NotEnoughMemory: they cannot; says how large the limit is.
    """
    found = limit()
    if found is None:
        return
    most = max(found - RESERVE, 1)
    code = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({most}, {most})); {_LOADED}"
    try:
        # -P: nothing in the current folder is taken for a library.
        failed = subprocess.run([sys.executable, "-P", "-c", code], stdin=subprocess.DEVNULL, capture_output=True).returncode
    except OSError:
        failed = 1
    if failed:
        raise NotEnoughMemory(
            f"The address space is limited to {found / 1e9:.1f} GB (ulimit -v), in which torch and ONNX Runtime cannot be loaded "
            f"with {RESERVE / 1e9:.1f} GB left to work in. Raise the limit, or limit resident memory instead, as containers do."
        )


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
