"""What libraries look for in the current folder while they are imported, they do not find.

matplotlib takes settings from a `matplotlibrc` there, which can start programs. A library of NVIDIA's that torch loads looks for
`libcuda.so.1` there (its search path ends with an empty entry, which stands for the current folder), and its code would run. The
current folder may be a stranger's, so these libraries are imported from the folder of this package.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

LIBRARIES = frozenset({"torch", "matplotlib"})


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(fullname, path, target) if fullname in LIBRARIES else None
        loader = found and found.loader
        if loader is None or not hasattr(loader, "exec_module"):
            return None
        execute = loader.exec_module

        def elsewhere(module: ModuleType) -> None:
            with _moved(Path(__file__).parent):
                execute(module)

        loader.exec_module = elsewhere
        return found


def install() -> None:
    """For what this process imports from here on. Of programs that start in a folder of their user's, not of libraries."""
    if not any(isinstance(one, _Finder) for one in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
        # Such as the marks of installations by `pip install -e`: a folder of that name here would be one of libraries.
        sys.path[:] = [place for place in sys.path if os.path.isabs(place)]


@contextmanager
def _moved(to: Path) -> Generator[None]:
    """Another current folder for a while; the way back is no path, which could be another folder's by then."""
    flags = getattr(os, "O_PATH", os.O_RDONLY)
    here = os.open(".", flags) if hasattr(os, "fchdir") else os.getcwd()
    try:
        os.chdir(to)
        yield
    finally:
        if isinstance(here, int):
            os.fchdir(here)
            os.close(here)
        else:
            os.chdir(here)
