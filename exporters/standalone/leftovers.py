"""Names that say whose they are, so that what a killed process left can be told from what a living one is writing.

    .report.json.4711-8812-1f3a09c2.part        PID - start of that process - machine

A process number is given again after a while, the number and its start never are. What another machine left is not touched: it
cannot be told from here whether that process lives. Needs Python 3.8 or newer, nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

MARK = re.compile(r"(?P<pid>\d{1,10})(-(?P<start>\d+)-(?P<machine>[0-9a-f]{8}))?")
"""Names of older versions have the number alone: they are left as long as there is any process of that number."""
TEMPORARY = "compress-"


def mark() -> str:
    """Of this process."""
    return f"{os.getpid()}-{started(os.getpid())}-{machine()}"


def hidden(name: str) -> str:
    """The beginning of a name beside a file called `name`, for what will be that file."""
    return f".{name}.{mark()}."


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A temporary folder of this process; those of dead ones go first."""
    sweep(Path(tempfile.gettempdir()), lambda name: name.startswith(TEMPORARY))
    with tempfile.TemporaryDirectory(prefix=f"{TEMPORARY}{mark()}-") as made:
        yield Path(made)


def sweep(place: Path, ours: Callable[[str], bool]) -> None:
    """Remove what dead processes left in a folder, of the names that `ours` knows. What cannot be removed stays."""
    try:
        names = os.listdir(str(place))
    except OSError:
        return
    for name in filter(ours, names):
        if dead(name):  # and not where that is unknown
            path = place / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(str(path), ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()


def dead(name: str) -> bool | None:
    """Whether the process whose mark a name has is no more; None where that cannot be told: no mark, or another machine's."""
    parts = [name[len(TEMPORARY) :].rpartition("-")[0]] if name.startswith(TEMPORARY) else name.split(".")
    # A whole mark before a bare number: what follows it is random, and may be one.
    marks = sorted((found for found in map(MARK.fullmatch, parts) if found), key=lambda found: found["start"] is not None)
    if not marks or (name.startswith(TEMPORARY) and marks[-1]["start"] is None):
        return None  # in a folder that is everybody's, a number alone may be a year
    pid, start, where = (marks[-1][key] for key in ("pid", "start", "machine"))
    if where is not None and where != machine():
        return None
    now = started(int(pid))
    return now is None or (start is not None and now != int(start))


def started(pid: int) -> int | None:
    """When a process began, in a unit of the system's; None where there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name of the program stands in parentheses and may hold anything.
            fields = file.read().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else int(fields[19])
    except OSError:
        return None if os.path.exists("/proc/self/stat") else _started(pid)


def _started(pid: int) -> int | None:
    """The same where there is no /proc: a number made of what `ps` says."""
    done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    said = done.stdout.strip()
    return int(hashlib.sha256(said).hexdigest()[:12], 16) if said else None


@functools.lru_cache(maxsize=1)
def machine() -> str:
    """Where numbers of processes mean the same: this host, and this container on it."""
    told = [platform.node()]
    with contextlib.suppress(OSError):
        told.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:8]
