"""What goes wrong in a run is told with what is kept of it."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import exporters
from compress.errors import BadInput, CompressError, Interrupted, NotWritten, StageFailed, Terminated
from compress.pipeline.workspace import Workspace
from compress.user import memory
from compress.user.files import told


@contextmanager
def failures(stage: str, done: Sequence[str]) -> Generator[None]:
    """A crash inside a stage is told with what is kept; refusals pass as they are."""
    try:
        yield
    # Refusals and full disks have a sentence of their own; only the unforeseen is wrapped.
    except (CompressError, exporters.ExportError, OSError):
        raise
    except Exception as error:
        if memory.short(error):
            raise memory.refusal(f"Stage '{stage}'", done, error) from error
        raise StageFailed(stage, done, error) from error


@contextmanager
def interruptions(workspace: Workspace) -> Generator[None]:
    """Who stops a run is told what is kept of it."""
    try:
        yield
    except KeyboardInterrupt as error:
        kind = Terminated if isinstance(error, Terminated) else Interrupted
        raise kind(workspace.finished()) from error


@contextmanager
def disk_errors(workspace: Workspace, done: Sequence[str]) -> Generator[None]:
    try:
        yield
    except (OSError, exporters.ExportError, NotWritten) as error:
        found = error if isinstance(error, OSError) else error.__cause__
        if found is None or not (isinstance(found, OSError) or isinstance(error, NotWritten)):
            raise
        if memory.short(found):
            raise memory.refusal("The run", done, found) from error
        workspace.check()  # a folder that is gone is another thing than a full disk
        kept = f"finished stages are kept ({', '.join(done) or 'none'}): add --resume to go on."
        if isinstance(error, NotWritten):  # which says what else would help
            raise NotWritten(f"{error} {kept[0].upper()}{kept[1:]}") from error
        raise BadInput(f"{workspace.out} cannot be written ({told(found)}). Make room there; {kept}") from error
