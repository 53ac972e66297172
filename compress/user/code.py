"""Names of user code, `package.module:function` or `path/to/file.py:function`, turned into the function."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.errors import BadInput

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
        raise BadInput(f"{what} is '{name}', but {place} has no function {attribute}; it has: {', '.join(public[:8]) or 'none'}.")
    return found


def _file(path: Path) -> Any:
    if not path.is_file():
        raise BadInput(f"There is no file {path}. Give the path from the current folder.")
    name = f"_compress_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "a .py suffix always has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look classes up by module name
    spec.loader.exec_module(module)
    return module
