"""Where in the user's code something stands, and what was said there, in one line."""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import traceback
from pathlib import Path
from types import CodeType

import torch
from torch.fx import Node

_NOWHERE = "in torch"
_TORCH = f"{Path(torch.__file__).parent}/"
_NOT_THEIRS = (_TORCH, f"{Path(__file__).parent}/")  # frames in here are not the user's code


class Unrecorded(Exception):
    """What a forward does that no graph can say; the message names it."""


class Untraced(Exception):
    """A forward that one way to a graph cannot follow.

    Attributes:
        path: the innermost submodule in which it broke; empty for the model's own forward.
    """

    def __init__(self, error: BaseException, path: str):
        place = where(error)
        # What we say ourselves of a whole forward has no line, and torch has not said it.
        ours = place == _NOWHERE and isinstance(error, Unrecorded)
        super().__init__(first_line(error) if ours else f"{place}: {first_line(error)}")
        self.path = path


def silent() -> contextlib.redirect_stderr[io.StringIO]:
    """A GraphModule that raises prints a traceback of its generated code first; not in here."""
    return contextlib.redirect_stderr(io.StringIO())


def user_line(until: CodeType) -> str:
    """`file.py:line` of the innermost frame outside of torch's own code; empty where there is none below `until`."""
    frame = sys._getframe(1)
    while frame is not None:
        # Reached where forward has no file of its own, as in a GraphModule that is traced again.
        if frame.f_code is until:
            break  # what called us is not the model
        if name := their_file(frame.f_code.co_filename):
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def stands_for(made: Node, of: Node) -> None:
    """Say of a new node that it stands where another does: in the user's code, and in which submodule."""
    made.meta |= {key: of.meta[key] for key in ("source", "module") if key in of.meta}


@functools.cache
def their_file(path: str) -> str:
    """The name of a file of the user's; empty for torch's and our own."""
    # Names in angle brackets are generated code, such as torch.fx's.
    return "" if path.startswith((*_NOT_THEIRS, "<")) else Path(path).name


def of_torch(path: str) -> bool:
    """Whether a file is torch's own."""
    return path.startswith(_TORCH)


def where(error: BaseException) -> str:
    """`file.py:line` of the innermost line of the user's that an exception passed."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if their_file(f.filename)]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else _NOWHERE


def first_line(error: BaseException) -> str:
    """What an exception says, at most 200 characters of its first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
