"""Make trained neural networks small, fast and deployable, and prove it.

Every command of the command line is a function here, with the same name and arguments:

    import compress
    result = compress.run(model, data=loader, target="macs=0.5")            # a module in memory: result.model is the smaller one
    report = compress.run("model.pt", data="images", target="macs=0.5", out="out")
    model = compress.load("out/model.compressed")                           # trainable, without the class it came from

Names are imported when they are first used, so that `import compress` costs nothing.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from exporters.no_telemetry import switch_off

if TYPE_CHECKING:
    from compress.api import (
        analyze,
        apply,
        bench,
        demo,
        detector,
        diff,
        doctor,
        edit,
        explain,
        export,
        finetune,
        follow,
        gate,
        init,
        linearize,
        load,
        merge,
        methods,
        package,
        plan,
        quantize,
        reconstruct,
        remove,
        run,
        save,
        trace,
        tune,
        verify,
    )
    from compress.commands.compare import compare
    from compress.commands.push import push
    from compress.commands.report_page import report_page

switch_off()  # also for an onnxruntime that is imported between this and the first call

__version__ = "0.1.0"
__all__ = [
    "analyze",
    "apply",
    "bench",
    "compare",
    "demo",
    "detector",
    "diff",
    "doctor",
    "edit",
    "explain",
    "export",
    "finetune",
    "follow",
    "gate",
    "init",
    "linearize",
    "load",
    "merge",
    "methods",
    "package",
    "plan",
    "push",
    "quantize",
    "reconstruct",
    "remove",
    "report_page",
    "run",
    "save",
    "trace",
    "tune",
    "verify",
]
_QUICK = ("compare", "diff", "gate", "methods", "push", "report_page", "verify")
"""Verbs that come from the file of their name, without everything that `compress.api` needs."""


@cache
def _verb(name: str) -> Any:
    function = getattr(import_module(f"compress.commands.{name}" if name in _QUICK else "compress.api"), name)
    return import_module("compress.commands.keyword_errors").speaking_keywords(function)


def __getattr__(name: str) -> Any:
    if name in __all__:
        return _verb(name)
    raise AttributeError(f"module 'compress' has no attribute '{name}'; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
