"""Modules that need a package of their own, imported when they are asked for."""

from __future__ import annotations

import importlib
from typing import Any

from exporters.errors import MissingBackend, first_line


def imported(module: str, wanted: str, install: str) -> Any:
    """The module of a format or a runtime.

    Raises:
        MissingBackend: what it needs is not installed, or is there and cannot be loaded, as where a shared library is missing.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingBackend(wanted, error.name or str(error), install) from error
    except Exception as error:  # broken packages fail in ways of their own
        broken = f"{type(error).__name__}: {first_line(error)}"
        raise MissingBackend(wanted, wanted, install, broken) from error
