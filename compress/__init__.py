"""Make trained neural networks small, fast and deployable, and prove it.

Every command of the command line is a function here, with the same name and arguments:

    import compress
    report = compress.run("model.pt", data="images", target="macs=0.5", out="out")
    model = compress.load("out/model.compressed")      # trainable, without the class it came from

Names are imported when they are first used, so that `import compress` costs nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inspect import Signature

    from compress.api import (
        analyze,
        apply,
        bench,
        demo,
        diff,
        doctor,
        explain,
        export,
        gate,
        load,
        methods,
        package,
        plan,
        run,
        save,
        trace,
        verify,
    )
    from compress.compare import compare

__version__ = "0.1.0"
__all__ = [
    "analyze",
    "apply",
    "bench",
    "compare",
    "demo",
    "diff",
    "doctor",
    "explain",
    "export",
    "gate",
    "load",
    "methods",
    "package",
    "plan",
    "run",
    "save",
    "trace",
    "verify",
]
_QUICK = ("compare", "diff", "gate", "verify")
"""Verbs that come from the file of their name, without everything that `compress.api` needs."""


class _Verb(ModuleType):
    """A file that shares its name with a verb: `compress.plan.Plan` is in the file, `compress.plan(...)` is the verb."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._verb(*args, **kwargs)

    @property
    def _verb(self) -> Any:
        return _verb(self.__name__.rpartition(".")[2])

    @property
    def __signature__(self) -> Signature:
        from inspect import signature

        return signature(self._verb)

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        return self._verb.__doc__


class _Package(ModuleType):
    """Importing the file plan.py binds `compress.plan` to it: here that file becomes callable."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in __all__ and isinstance(value, ModuleType):
            value.__class__ = _Verb
        super().__setattr__(name, value)


def _verb(name: str) -> Any:
    return getattr(import_module(f"compress.{name}" if name in _QUICK else "compress.api"), name)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in __all__:
        return _verb(name)
    raise AttributeError(f"module 'compress' has no attribute '{name}'; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
