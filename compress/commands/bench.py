"""`compress bench`: model files timed in turns, in one runtime or in several.

Candidates are models x runtimes x batch sizes x threads. Those of one batch size and number of threads run in turns, each in a
process of its own (`measure.turns`), and are compared with the first. torch's eager mode and CUDA run in this process
(`measure.latency`).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import nn

import exporters
from compress.commands.bench_files import Files, Unfit, native, onnx_inputs, resolved, stored, unpacked
from compress.errors import BadInput, Unsteady
from compress.keywords import Common, with_settings
from compress.measure import gpu, interleaved, runtime
from compress.measure.interleaved import Candidate, Figures
from compress.measure.latency import Timing, compare
from compress.measure.runtime import threads_of
from compress.pipeline.prepare import opened
from compress.progress import Progress
from compress.recipe import Recipe
from compress.remote.race import race as race_there
from compress.remote.ssh import device, workshop
from exporters import runtimes
from exporters.standalone import leftovers, machine

IN_PROCESS = ("torch", "ort-cuda")
Race = Callable[..., list[Figures]]


@with_settings
def bench(
    *models: nn.Module | str | Path,
    runtime: str | Sequence[str] = "auto",
    batch: int | str | Sequence[int] = 1,
    threads: int | str | Sequence[int] = 0,
    cpu: str | Sequence[int] = (),
    strict: bool = False,
    target: str = "local",
    python: str = "python3",
    ssh_config: str | Path | None = None,
    progress: Progress | None = None,
    **settings: Unpack[Common],
) -> dict[str, Figures]:
    """Latency of several models, timed in turns; each is compared with the first of its batch size and threads.

    A module in memory is stored in a temporary folder first, and goes by the name of its class (and its number where there are
    several); `inputs` or `input_shape` say what it takes, unless it is a traced one.

    A file runs in the runtimes that are named, as far as they open it; with `auto` in the one that it was made for. A torch
    model is exported to a temporary file first, except for `runtime="torch"` alone; a package gives its ONNX models. `batch` and
    `threads` may be several ("1,32"), `cpu` names cores to pin to ("2,3"). An input size that is not given is that of the first
    file that knows its own. With `target="ssh://user@host:port"` ONNX files are copied to that device, timed by a script of this
    installation and the device's own `python`, and removed again; `ssh_config` is read instead of ~/.ssh/config.

    Raises:
        BadInput: no model, a model that cannot be opened, nothing that runs in any of the runtimes, or a device that is not
            reached or has no room or Python.
        Unsteady: `strict`, and the rounds of a candidate scatter too much for any claim.
    """
    if not models:
        raise BadInput("No model was given. Give at least one file; the first one is what the others are compared with.")
    there = None if target == "local" else device(target, config=None if ssh_config is None else Path(ssh_config))
    wanted = chosen(runtime) if there is None else on_device(runtime)
    sizes, counts = numbers("batch", batch, 1), numbers("threads", threads, 0)
    if there is None:
        threads_of(max(counts))  # for its refusal
    cores = numbers("cpu", cpu, 0) if cpu else []
    usable = os.sched_getaffinity(0) if there is None and hasattr(os, "sched_getaffinity") else set(cores)
    if lacking := sorted(set(cores) - usable):
        raise BadInput(
            f"--cpu names core {lacking[0]}, and there are {', '.join(map(str, sorted(usable)))}. Name cores of these."
        )
    with ExitStack() as stack:
        folder = stack.enter_context(leftovers.folder())
        asked = {**settings, "runtime": wanted[0] if wanted[0] in IN_PROCESS else "ort"}
        files, asked = stored(models, asked, folder)
        recipes = resolved(dict(unpacked(files, folder)), asked, sizes[0], counts[0])
        if wanted[0] in IN_PROCESS:
            found = in_process(recipes, wanted[0], progress)
        else:
            race = interleaved.race if there is None else partial(race_there, stack.enter_context(workshop(there, python)))
            found = in_turns(Files(recipes, folder, progress), wanted, sizes, counts, partial(race, cpus=cores), progress)
    if strict:
        steady(found.values())
    return found


def on_device(asked: str | Sequence[str]) -> tuple[str, ...]:
    """What is timed on a device.

    Raises:
        BadInput: a runtime that the script which is sent there does not know.
    """
    names = tuple(asked.split(",") if isinstance(asked, str) else asked)
    if set(names) - {"auto", "ort"}:
        raise BadInput(f"The runtime is '{','.join(names)}'; on a device ONNX Runtime alone is timed. Leave --runtime out.")
    return ("ort",)


def chosen(asked: str | Sequence[str]) -> tuple[str, ...]:
    """Runtimes by name.

    Raises:
        BadInput: an unknown one, or one that only works alone beside others.
    """
    names = tuple(dict.fromkeys(asked.split(",") if isinstance(asked, str) else asked))
    if names == ("auto",):
        return ("ort-cuda",) if runtime.choose() == "ort-cuda" else names
    known = ("auto", *runtimes.RUNTIMES, "ort-cuda")
    for name in names:
        if name not in known:
            raise BadInput(f"The runtime is '{name}'; known are {', '.join(known)}.")
    if len(names) > 1 and "ort-cuda" in names:
        raise BadInput("The runtime ort-cuda is timed on a device, the others on the processor. Time it in a call of its own.")
    if names == ("ort-cuda",):
        runtime.choose("ort-cuda")
    return names


def numbers(flag: str, value: int | str | Sequence[int], least: int) -> list[int]:
    """`1,32` -> [1, 32].

    Raises:
        BadInput: not whole numbers from `least` upwards.
    """
    parts = value.split(",") if isinstance(value, str) else [value] if isinstance(value, int) else value
    try:
        found = [int(part) for part in parts]
    except ValueError:
        found = []
    if not found or min(found) < least:
        raise BadInput(f"--{flag} is '{value}'; needed are whole numbers from {least}, separated by commas.")
    return list(dict.fromkeys(found))


def in_turns(
    files: Files, wanted: Sequence[str], sizes: Sequence[int], counts: Sequence[int], race: Race, progress: Progress | None
) -> dict[str, Figures]:
    """Every candidate, group by group of equal batch size and threads."""
    found: list[Figures] = []
    for batch, threads in itertools.product(sizes, counts):
        rows: list[Candidate | Figures] = []
        for model, name in itertools.product(files.recipes, wanted):
            where = native(Path(files.recipes[model].model)) if name == "auto" else name
            try:
                rows.append(Candidate(model, where, files.file(model, where, batch), batch, threads, files.shapes(model)))
            except (Unfit, exporters.ExportError) as error:
                rows.append(Figures(model, where, batch, threads, reason=str(error)))
        running = [row for row in rows if isinstance(row, Candidate)]
        if progress:
            progress("timing", 0.0, f"{len(running)} candidates, batch {batch}, {files.rounds} rounds")
        timed = iter(race(running, rounds=files.rounds) if running else [])
        found += [next(timed) if isinstance(row, Candidate) else row for row in rows]
    if all(row.reason for row in found):
        raise BadInput(f"Nothing could be timed. {found[0].model} in {found[0].runtime}: {found[0].reason}")
    return named(found)


def named(rows: Sequence[Figures]) -> dict[str, Figures]:
    """By the model's name, and by what else differs."""
    parts = ("runtime", "batch", "threads")
    many = [part for part in parts if len({getattr(row, part) for row in rows if row.reason is None}) > 1]
    alone = len({row.model for row in rows}) == len(rows)
    return {
        row.model if alone else " ".join([row.model, *(f"{part}={getattr(row, part)}" for part in many)]): row for row in rows
    }


def steady(rows: Iterable[Figures]) -> None:
    """Refuse figures that scatter too much.

    Raises:
        Unsteady: names the first.
    """
    for row in rows:
        if row.noisy:
            taken = (row.calm if row.calm is not None else 1.0) < machine.LEAST_CALM
            why = "were disturbed by other processes too often." if taken else "scatter too much for any claim."
            raise Unsteady(
                f"The rounds of {row.model} in {row.runtime} {why} Let the "
                "machine rest, pin the cores (--cpu), or time more --rounds."
            )


def in_process(recipes: dict[str, Recipe], where: str, progress: Progress | None) -> dict[str, Figures]:
    """Torch's eager mode and CUDA, timed in turns in this process."""
    names = list(recipes)
    with leftovers.folder() as folder:
        calls: dict[str, Callable[[], object]] = {}
        found: dict[str, dict[str, Any]] = {}
        for number, name in enumerate(names):
            if progress:
                progress("opening", number / len(names), name)
            calls[name], taken = gpu.opened(partial(timed_call, recipes[name], where, folder / f"{number}.onnx"))
            found[name] = {"gpu_bytes": taken.driver, "gpu_allocated_bytes": taken.allocated}
        if progress:
            progress("opening", 1.0, "")
            progress("timing", 0.0, f"{recipes[names[0]].rounds} rounds in {where}")
        before = machine.gpu()
        timings = compare(
            calls, names[0], rounds=recipes[names[0]].rounds, waits=partial(machine.Waits, _threads(recipes[names[0]]))
        )
        seen = gpu.beside(before, machine.gpu())
        for name, call in calls.items():
            found[name] |= {"gpu_ms": gpu.device_ms(call) if where == "torch" else None, **seen}
    return {name: replace(_of(timing, recipes[name], where), **found[name]) for name, timing in timings.items()}


def _threads(recipe: Recipe) -> int:
    return threads_of(recipe.threads)


def _of(timing: Timing, recipe: Recipe, where: str) -> Figures:
    return Figures(
        recipe.model, where, recipe.batch, _threads(recipe), timing.p50_ms, timing.ratio, timing.ci95,
        timing.samples, timing.p50_ci95_ms, per_second=1e3 * recipe.batch / timing.p50_ms, noisy=timing.noisy, calm=timing.calm,
        verdict=timing.verdict,
    )  # fmt: skip


def timed_call(recipe: Recipe, where: str, temporary: Path) -> Callable[[], object]:
    """One call of a model file in a runtime, on random inputs of the batch size to be timed."""
    path = Path(recipe.model)
    if path.suffix == ".onnx":
        if where == "torch":
            raise BadInput(f"{path} is an ONNX file, which torch does not run. Take --runtime ort, or give a torch model.")
        return runtime.runner(where, path, onnx_inputs(path, recipe.batch), recipe.threads)
    artifact, _ = opened(recipe)
    inputs = tuple(torch.randn(recipe.batch, *x.shape[1:], generator=torch.Generator().manual_seed(0)) for x in artifact.inputs)
    if where == "torch":
        return runtime.runner(where, artifact.module, inputs, recipe.threads)
    exporters.export("onnx", artifact.module, artifact.inputs, temporary, opset=recipe.opset, check_parity=False)
    return runtime.runner(where, temporary, inputs, recipe.threads)
