"""One run at a time in a folder: a lock of the system's, which a process that has ended never holds.

    out/.lock       {"pid": ..., "host": ..., "mark": ..., "since": ...}      while a run is going on

The kernel gives `flock` back when its holder ends, however that is. Where a file system has no such lock (some network mounts),
what stands in the file is believed as far as it can be checked: a process of this machine that is alive holds it.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from compress.errors import BadInput
from compress.user import files
from exporters.standalone import leftovers

NAME = ".lock"
_LONGEST = 4096  # characters; ours have some 150


@dataclass(frozen=True)
class Lock:
    """A folder that is ours until `release`, or until this process ends."""

    folder: Path
    file: IO[str]

    @property
    def holds(self) -> bool:
        """Whether the folder is still the one that was locked: not deleted, and nobody else's in its place."""
        try:
            return os.path.samestat(os.fstat(self.file.fileno()), os.stat(self.folder / NAME))
        except OSError:
            return False

    def release(self) -> None:
        """Give the folder back; nothing is left in it."""
        if not self.file.closed:
            # Before the lock goes: whoever opened the file meanwhile sees that it is gone, and takes a new one.
            if self.holds:
                (self.folder / NAME).unlink()
            self.file.close()


@contextmanager
def locked(folder: Path) -> Generator[Lock]:
    """A folder that nobody else runs in while the block lasts.

    Raises:
        BadInput: another process has it; says which one, since when, and what to do.
        OSError: nothing can be written there.
    """
    lock = _taken(folder)
    try:
        yield lock
    finally:
        lock.release()


def _taken(folder: Path) -> Lock:
    while True:
        # a: the holder's words stay until the lock is ours.
        file = (folder / NAME).open("a+")
        if os.fstat(file.fileno()).st_nlink > 1:  # what is written into it would stand in another file, too
            file.close()
            raise BadInput(f"{folder / NAME} is a hard link to another file; needed is a file of the run's own. Remove it.")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(file)
            if isinstance(error, BlockingIOError) or _alive(holder):
                file.close()
                raise BadInput(_refusal(folder, holder)) from None
        lock = Lock(folder, file)
        # Its holder may have ended and removed the file between our opening and our locking it.
        if lock.holds:
            _write(file)
            return lock
        file.close()


def _write(file: IO[str]) -> None:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    file.truncate(0)
    json.dump({"pid": os.getpid(), "host": platform.node(), "mark": leftovers.mark(), "since": since}, file)
    file.flush()


def _holder(file: IO[str]) -> dict[str, Any]:
    file.seek(0)
    try:
        found = files.parsed_json(file.read(_LONGEST))
    except ValueError:  # somebody else's words
        return {}
    return found if isinstance(found, dict) else {}


def _alive(holder: dict[str, Any]) -> bool:
    mark = str(holder.get("mark", ""))
    return leftovers.MARK.fullmatch(mark) is not None and mark != leftovers.mark() and leftovers.dead(f".{mark}") is False


def _refusal(folder: Path, holder: dict[str, Any]) -> str:
    who = (
        f"process {holder['pid']} on {holder['host']}, since {holder['since']}" if {"pid", "host", "since"} <= set(holder) else ""
    )
    return (
        f"{folder} is in use by another run ({who or 'which does not say more'}). Wait until it ends, stop it "
        f"({'kill ' + str(holder['pid']) if who else 'it keeps what it finished'}), or choose another --out."
    )
