"""A model file opened in ONNX Runtime, and run: the same way wherever a file is compared or timed.

Needs Python 3.8 or newer and onnxruntime.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is loaded, here and in processes started from here

MOST_S = 50.0
"""Seconds for all samples of a model of a stranger, which run one by one."""


def session(model: Path | bytes, threads: int, batch: int = 0, profile: Path | None = None) -> Any:
    """A model opened; `batch` is the only size that will be asked for, where that is known: memory is then planned once.

    With `profile` every operation is timed, into a file whose name begins so.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is told by an exception
    if threads:
        options.intra_op_num_threads = threads
    if batch:
        options.add_free_dimension_override_by_name("batch", batch)
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as where the expected latency was measured
    return onnxruntime.InferenceSession(
        str(model) if isinstance(model, Path) else model, options, providers=["CPUExecutionProvider"]
    )


def function(session: Any, options: Any = None) -> Callable[[list[Any]], list[Any]]:
    """The model as a function from arrays to arrays."""
    names = [i.name for i in session.get_inputs()]
    return lambda arrays: list(session.run(None, dict(zip(names, arrays)), options))


@contextlib.contextmanager
def bounded(session: Any) -> Iterator[Callable[[list[Any]], list[Any]]]:
    """The same for a model of a stranger, which may go round in a loop for ever: what runs on after `MOST_S` is ended.

    Raises:
        TimeoutError: it was.
    """
    import onnxruntime

    options = onnxruntime.RunOptions()
    watch = threading.Timer(MOST_S, setattr, (options, "terminate", True))
    watch.daemon = True
    watch.start()
    try:
        yield function(session, options)
    except Exception as error:  # a runtime's own kinds
        if not options.terminate:
            raise
        raise TimeoutError(f"it does not end within {MOST_S:.0f} s") from error
    finally:
        watch.cancel()
