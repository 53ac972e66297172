"""An export in a process of its own, with an end to its time and memory: one that crashes, hangs or eats memory fails alone.

The model goes there as a file that this process wrote a moment before, in a folder that nobody else may read; JSON comes back.
Memory is the resident memory of the child as Linux tells it, looked at several times a second; elsewhere it is not limited.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import exporters
from exporters import capture
from exporters.errors import ExportError, MissingBackend, ParityError, first_line
from exporters.exported import Closeness, Exported, Parity
from exporters.standalone import leftovers
from exporters.standalone.tied import tied

SECONDS = 1200.0
MEMORY_SHARE = 0.8
"""Of the machine's memory that is free when the export starts."""
_LOOK = 0.1


def export(
    format: str,
    model: nn.Module,
    inputs: Sequence[Tensor],
    path: Path,
    *,
    seconds: float = SECONDS,
    memory: int | None = None,
    metadata: Mapping[str, str] | None = None,
    samples: Iterable[Sequence[Tensor]] | None = None,
    **options: Any,
) -> Exported:
    """As `exporters.export`, in a process of its own.

    Args:
        format: as there, like all that is not named here.
        model: as there; its classes have to be importable from the child.
        inputs: as there.
        path: as there.
        seconds: the child is ended after that time.
        memory: bytes of resident memory at which the child is ended; None: four fifths of what is free now.
        metadata: as there.
        samples: as there.
        options: as there.

    Raises:
        ExportError: as there; also: the child crashed, took too long or too much memory, or cannot be given the model.
    """
    with leftovers.folder() as folder:
        request = {
            "format": format,
            "model": _plain(capture.frozen(model)),
            "inputs": tuple(x.detach().cpu() for x in inputs),
            "path": str(path.absolute()),
            "metadata": dict(metadata or {}),
            "samples": None if samples is None else [tuple(x.detach().cpu() for x in batch) for batch in samples],
            "options": options,
        }
        try:
            torch.save(request, folder / "request.pt")
        except Exception as error:
            # torch tells a full disk in errors of its own.
            if isinstance(error, OSError) or any(writer in str(error) for writer in ("PytorchStreamWriter", "inline_container")):
                raise ExportError(
                    f"The model cannot be written to {folder} ({first_line(error)}). Make room there, or set TMPDIR."
                ) from error
            raise ExportError(
                f"The model cannot be handed to the process that writes {format} ({first_line(error)}). "
                "Put its classes into a module that can be imported."
            ) from error
        ended = _run(folder, seconds, _free_share() if memory is None else memory)
        return _answer(folder, format, path, ended)


def _plain(model: nn.Module) -> nn.Module:
    """A graph is unpickled by tracing it again: with torch's own tracer, not with the one that made it."""
    for module in model.modules():
        if isinstance(module, GraphModule):
            vars(module)["_tracer_cls"] = None
    return model


def _run(folder: Path, seconds: float, memory: int) -> str:
    """Start the child and wait; how it ended, in words, empty where it came to its end by itself."""
    # What the child keeps for a while goes with this folder, however the child ends.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "TMPDIR": str(folder)}
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(
            tied([sys.executable, "-P", "-m", "exporters.isolated_child", str(folder)]),
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + seconds
        try:
            while child.poll() is None:
                if time.monotonic() > deadline:
                    return f"took longer than {seconds:g} s"
                if (used := _resident(child.pid)) > memory:
                    return f"took {used / 1e9:.1f} GB of memory, more than the {memory / 1e9:.1f} GB that it may"
                time.sleep(_LOOK)
        finally:
            _end(child)
    return "" if child.returncode == 0 else f"crashed ({_ending(child.returncode)})"


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and what it started."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _answer(folder: Path, format: str, path: Path, ended: str) -> Exported:
    """What the child wrote, as a record or as the error that it met."""
    answer = folder / "answer.json"
    if ended or not answer.exists():
        leftovers.sweep(path.parent, lambda name: name.startswith(f".{path.name}."))
        said = (folder / "log").read_text(errors="replace").strip().splitlines()
        last = f" The last that it said: {said[-1][:300]}" if said else ""
        raise ExportError(f"The export to {format} {ended or 'left no answer'}; nothing of it is kept.{last}")
    told = json.loads(answer.read_text())
    if (error := told.get("error")) is not None:
        raise _error(format, error)
    parity, closeness = told.pop("parity"), told.pop("closeness")
    return Exported(
        **(told | {"path": path, "kept_float": tuple(told["kept_float"])}),
        parity=parity and Parity(**(parity | {"batch_sizes": tuple(parity["batch_sizes"])})),
        closeness=closeness and Closeness(**closeness),
    )


def _error(format: str, told: dict[str, Any]) -> ExportError:
    match told["kind"]:
        case "ParityError":
            return ParityError(float(told["worst"]), float(told["tolerance"]), told["where"])
        case "MissingBackend":
            return MissingBackend(format, told["missing"], exporters.INSTALL.get(format, ""), told["broken"])
        case _:
            return ExportError(told["message"])


def told(error: ExportError) -> dict[str, Any]:
    """An error as the child writes it down."""
    facts: dict[str, Any] = {"kind": type(error).__name__, "message": str(error)}
    if isinstance(error, ParityError):
        facts |= {"worst": str(error.worst), "tolerance": str(error.tolerance), "where": error.where}
    if isinstance(error, MissingBackend):
        facts |= {"missing": error.missing, "broken": error.broken}
    return facts


def record(exported: Exported) -> dict[str, Any]:
    """A finished export as the child writes it down."""
    return dataclasses.asdict(exported) | {"path": str(exported.path)}


def _ending(code: int) -> str:
    if code < 0:
        try:
            return signal.Signals(-code).name
        except ValueError:
            return f"signal {-code}"
    return f"exit code {code}"


def _resident(process: int) -> int:
    """Bytes of resident memory of a process; 0 where that cannot be told."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _free_share() -> int:
    """Bytes that a child may use."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return sys.maxsize
    return int(MEMORY_SHARE * free)
