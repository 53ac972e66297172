"""Too little memory: how such an error is told from others, a limit in which nothing would even start, and how much is free.

Libraries tell it in words of their own. Where one cannot go on at all it ends the process, which no `except` sees: so a limit on
the address space (`ulimit -v`) is tried out before they are loaded, in a process that may end that way.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from compress.errors import NotEnoughMemory

RESERVE = 512 * 2**20
"""Bytes to work in, beside what the libraries map."""
_WORTH = 50e6  # bytes
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
        # -P, and the folder: nothing in the current one is taken for a library.
        command, where = [sys.executable, "-P", "-c", code], Path(__file__).parent
        failed = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, cwd=where).returncode
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


def free() -> int:
    """Bytes that this process may still take: what the machine has left, or less where a container or another control group does.

    What files keep in memory counts as free, as the system takes it back when it is asked for.
    """
    return max(min(_left_on_the_machine(), *map(_left_in, _control_groups())), 0)


def taken() -> int:
    """Bytes that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def trim() -> None:
    """Give back to the system what was freed: glibc keeps holes between values that live on, gigabytes of them after a while."""
    with suppress(OSError, AttributeError):  # another C library has no such function
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def let_go(size: float) -> None:
    """Give back what models of so many bytes took that nobody holds any more.

    A traced model and its graph refer to each other, so that only Python's collector ends them, which comes by far too rarely:
    gigabytes of old models stay until then. A collection takes a fifth of a second, which small ones are not worth.
    """
    if size >= _WORTH:
        gc.collect()
        trim()


def _left_on_the_machine() -> int:
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # another system than Linux: half of all that is there
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _control_groups() -> list[Path]:
    """Folders of the groups of this process and of those around them, of both versions; a container sees its own as the root."""
    roots = {"": Path("/sys/fs/cgroup"), "memory": Path("/sys/fs/cgroup/memory")}
    found = list(roots.values())
    try:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return found
    for _, kinds, place in lines:
        if kinds in roots:
            inside = roots[kinds] / place.lstrip("/")
            found += [inside, *(p for p in inside.parents if p.is_relative_to(roots[kinds]))]
    return found


def _left_in(group: Path) -> int:
    """What the limit of a group leaves; a number beyond every machine where it has none."""
    for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
        try:
            most, now = int((group / limit).read_text()), int((group / used).read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            return most - now + int(stat.get("inactive_file", 0))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return sys.maxsize
