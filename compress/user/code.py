"""Names of user code, `package.module:function` or `path/to/file.py:function`, turned into the function."""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.errors import BadInput
from compress.user import files

_FILES: dict[Path, tuple[bytes, Any]] = {}
"""What was imported from a file, and the bytes that it had: as with any import, what it registers stands there once."""
_MOVED = {"compress.demo": "compress.commands.demo"}
"""Where modules stand now that recipes name by a place of their own."""


def function(name: str, what: str) -> Callable[..., Any]:
    """The callable behind a name.

    Args:
        name: `package.module:function` or `path/to/file.py:function`.
        what: the option the name was given for, such as "--metric"; messages begin with it.

    Raises:
        BadInput: not such a name, no such file or module, its import fails, or it has no such callable.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise BadInput(f"{what} is '{name}'; needed is package.module:function or path/to/file.py:function.")
    try:
        module = _file(Path(place)) if place.endswith(".py") else importlib.import_module(_MOVED.get(place, place))
    except BadInput:
        raise
    except Exception as error:  # user code may raise anything on import
        raise BadInput(f"{what} is '{name}', but importing {place} fails ({type(error).__name__}: {error}).") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        # What it imported is of no use to anybody, where it has something of its own.
        own = [key for key in public if _of(module, vars(module)[key])] or public
        close = difflib.get_close_matches(attribute, own, 1)
        meant = f" Did you mean {place}:{close[0]}?" if close else ""
        raise BadInput(
            f"{what} is '{name}', but {place} has no function {attribute}; it has: {', '.join(own[:8]) or 'none'}.{meant}"
        )
    return found


def _of(module: Any, value: Any) -> bool:
    """Whether something was written in this module, or in one below it."""
    return f"{getattr(value, '__module__', '')}.".startswith(f"{module.__name__}.")


def guarded(name: str, what: str) -> Callable[..., Any]:
    """The callable behind a name; what goes wrong in it is told as its own failure.

    Raises:
        BadInput: as for `function`; or, when it is called, that it raised.
    """
    own = function(name, what)

    @functools.wraps(own)
    def call(*arguments: Any, **settings: Any) -> Any:
        try:
            return own(*arguments, **settings)
        except BadInput:
            raise
        except Exception as error:  # user code may raise anything
            told = (str(error).strip() or "no message").splitlines()[0]
            raise BadInput(f"{what} {name} fails ({type(error).__name__}: {told}). Correct it, or leave {what} out.") from error

    return call


def number(value: Any, what: str, name: str) -> float:
    """What the callable behind a name gave, as a number.

    Raises:
        BadInput: it is none, or not finite.
    """
    try:
        found = float(value)
    except (TypeError, ValueError, RuntimeError):
        found = math.nan
    if not math.isfinite(found):
        raise BadInput(f"{what} {name} gives {str(value)[:60]}; needed is a number for each batch.")
    return found


def _file(path: Path) -> Any:
    files.here(path)
    if not path.is_file():
        raise BadInput(f"There is no file {path}. Give the path from the current folder.")
    place, content = path.resolve(), path.read_bytes()
    if place in _FILES and _FILES[place][0] == content:
        return _FILES[place][1]
    name = f"_compress_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a .py suffix always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look classes up by module name
    spec.loader.exec_module(module)
    _FILES[place] = content, module
    return module
