"""Two models raced in the target runtime, and the outcome remembered: what stages ask for when a decision needs milliseconds.

The runtime is one of this machine or, with `--on`, ONNX Runtime on a device that ssh reaches.

Latency depends on structure and shapes, not on the values of weights. An outcome is kept by a digest of both models: their
graphs, layers and input shapes, the settings of the runtime, the versions and the device. A race too noisy to tell is run
again, and forgotten if that is no better.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.node import map_arg

import exporters
from compress.artifact import Artifact
from compress.errors import BadInput
from compress.graph.channel_affine import ChannelAffine
from compress.measure.interleaved import Candidate, Figures
from compress.measure.latency import Timing, compare, pooled
from compress.measure.runtime import choose, runner, threads_of
from compress.pipeline.remembered import made, recalled, remember
from compress.recipe import Recipe
from compress.remote.race import race as race_there
from compress.remote.ssh import device, workshop
from compress.report.environment import environment
from exporters import onnx_for_timing
from exporters.standalone import leftovers, machine

_FILE = "latency.json"
_SESSIONS, _LEAST, _BUDGET_S = 4, 10, 60.0
"""In which a race is timed, the rounds of each at least, and the time after which none is begun, shared by all."""


_PLAIN = (
    *(nn.Conv1d, nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.Identity, nn.Dropout, ChannelAffine),
    *(nn.AdaptiveAvgPool2d, nn.Flatten, nn.Upsample),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh),
)


@dataclass
class LatencyCache:
    """Races of one run.

    Attributes:
        recipe: runtime, batch, threads, rounds, seed, opset.
        device: of the torch runtime.
        again: number of a repetition, which what is remembered of the first does not answer.
        measured: races that were run, and not remembered, so far.
    """

    recipe: Recipe
    device: torch.device
    again: int = 0
    measured: int = field(default=0, init=False)
    _known: dict[str, Any] | None = field(default=None, init=False)

    @property
    def runtime(self) -> str:
        """The runtime that is timed, resolved."""
        if self.recipe.on is None:
            threads_of(self.recipe.threads)  # for its refusal
            return choose(self.recipe.runtime)
        if self.recipe.runtime not in ("auto", "ort"):
            raise BadInput(
                f"--runtime {self.recipe.runtime} does not go with --on, which times in ONNX Runtime alone. Leave one out."
            )
        device(self.recipe.on)  # for its refusal
        return "ort"

    def race(self, one: Artifact, other: Artifact) -> Timing:
        """Speed of one model over another, timed in turns, or as measured before on this machine."""
        if self._known is None:
            self._known = recalled(_FILE, Timing)
        key = self.key(one, other)
        known = made(Timing, self._known.get(key))
        # A race without a time, or one that tells nothing, was never kept.
        if known is None or known.noisy or min(known.p50_ms, known.ratio, *known.ci95) <= 0:
            timing = self._measure(one, other)
            self.measured += 1
            if timing.noisy:
                return timing  # retry on an idle machine
            # Without the rounds, which nobody asks for again.
            self._known[key] = dataclasses.asdict(dataclasses.replace(timing, rounds_ms=()))
            remember(_FILE, Timing, self._known)
            known = timing
        return dataclasses.replace(known, rounds_ms=(), calm=1.0)

    def runner(self, artifact: Artifact, path: Path, inputs: tuple[Tensor, ...]) -> Callable[[], object]:
        """A call that runs the model once; `path` is its ONNX file, which the torch runtime does not need."""
        target = artifact.on(self.device) if self.runtime == "torch" else path
        return runner(self.runtime, target, inputs, self.recipe.threads)

    def _measure(self, one: Artifact, other: Artifact) -> Timing:
        if self.recipe.on is not None:
            return self._measured_there(one, other)
        with leftovers.folder() as folder:
            paths = {name: folder / f"{name}.onnx" for name in ("one", "other")}
            pair = {"one": one, "other": other}
            if self.runtime != "torch":
                for name, artifact in pair.items():
                    self.write(artifact, paths[name])

            def opened() -> dict[str, Callable[[], object]]:
                return {name: self.runner(artifact, paths[name], self._batch(artifact)) for name, artifact in pair.items()}

            timing = self.in_sessions(opened, "other")["one"]
            return self.in_sessions(opened, "other")["one"] if timing.noisy else timing

    def _measured_there(self, one: Artifact, other: Artifact) -> Timing:
        with leftovers.folder() as folder:
            paths = {name: folder / f"{name}.onnx" for name in ("other", "one")}
            for path, artifact in zip(paths.values(), (other, one), strict=True):
                self.write(artifact, path)
            return self.of_files(paths["other"], paths["one"], self._batch(one))

    def of_files(self, reference: Path, one: Path, inputs: tuple[Tensor, ...]) -> Timing:
        """Speed of an ONNX file over another, here or on the device of the recipe; nothing is remembered.

        Raises:
            BadInput: the device cannot be reached, or does not run one of them.
        """
        recipe = self.recipe
        if recipe.on is None:
            files = {"other": reference, "one": one}
            return self.in_sessions(
                lambda: {name: runner(self.runtime, path, inputs, recipe.threads) for name, path in files.items()}, "other"
            )["one"]
        shapes = tuple(tuple(x.shape[1:]) for x in inputs)
        pair = [Candidate(path.name, "ort", path, recipe.batch, recipe.threads, shapes) for path in (reference, one)]
        with workshop(device(recipe.on), recipe.on_python) as shop:
            found = race_there(shop, pair, rounds=recipe.rounds, seed=recipe.seed)
        if failed := [figures.reason for figures in found if figures.reason is not None]:
            raise BadInput(
                f"{recipe.on} does not run the model: {failed[0]}. See what its ONNX Runtime can with 'compress bench'."
            )
        return _timing(found[1])

    def write(self, artifact: Artifact, path: Path) -> None:
        """The file that is timed: written in milliseconds where the runtime makes the same of that as of the real one."""
        if _plain(artifact):
            onnx_for_timing.write(artifact.module, artifact.inputs, path, self.recipe.opset)
        else:
            exporters.export("onnx", artifact.module, artifact.inputs, path, opset=self.recipe.opset, check_parity=False)

    def in_sessions(self, opened: Callable[[], dict[str, Callable[[], object]]], reference: str) -> dict[str, Timing]:
        """The rounds of runners in turns, as the recipe has it, shared by several sessions.

        Where memory lies, and what follows from it, differs between them.
        """
        recipe = self.recipe
        count = 1 if self.runtime == "torch" else min(max(recipe.rounds // _LEAST, 1), _SESSIONS)
        rounds, waits = -(-recipe.rounds // count), partial(machine.Waits, threads_of(recipe.threads))
        sessions = [
            compare(opened(), reference, rounds=rounds, budget_s=_BUDGET_S / count, seed=recipe.seed, waits=waits)
            for _ in range(count)
        ]
        return pooled(sessions, reference, recipe.seed)

    def _batch(self, artifact: Artifact) -> tuple[Tensor, ...]:
        return tuple(x.repeat(self.recipe.batch, *[1] * (x.ndim - 1)).to(self.device) for x in artifact.inputs)

    def key(self, one: Artifact, other: Artifact) -> str:
        where = environment().model_dump(exclude={"date", "compress"})
        recipe = self.recipe
        cores = threads_of(recipe.threads) if recipe.on is None else recipe.threads
        settings = (self.runtime, recipe.batch, cores, recipe.rounds, recipe.opset, str(self.device), recipe.on)
        settings = (*settings, self.again) if self.again else settings
        text = json.dumps([where, settings, _structure(one), _structure(other)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _timing(found: Figures) -> Timing:
    """Of a device; what scatters there is of no worth."""
    assert found.p50_ms is not None and found.ratio is not None and found.ci95 is not None and found.samples is not None
    scatter = float("inf") if found.noisy else 1.0
    return Timing(found.p50_ms, found.ratio, found.ci95, found.samples, found.p50_ci95_ms, scatter, calm=found.calm or 0.0)


_PLAIN_FUNCTIONS = frozenset(
    {operator.add, torch.add, operator.sub, torch.sub, operator.mul, torch.mul, torch.cat, torch.flatten, F.adaptive_avg_pool2d}
)
_PLAIN_METHODS = frozenset({"mean", "flatten", "sigmoid"})


def _plain(artifact: Artifact) -> bool:
    """Whether a model is of the kinds for which a quick file is as good as the real one."""
    module = artifact.module
    known: dict[str, Callable[[Any], bool]] = {
        "placeholder": lambda _: True,
        "output": lambda _: True,
        "call_module": lambda target: isinstance(module.get_submodule(target), _PLAIN),
        "call_function": _PLAIN_FUNCTIONS.__contains__,
        "call_method": _PLAIN_METHODS.__contains__,
    }
    return all(node.op in known and known[node.op](node.target) for node in module.graph.nodes)


def _structure(artifact: Artifact) -> list[str]:
    """Everything that latency depends on: operations, layers with their sizes, shapes; not what they are called."""
    module = artifact.module
    place = {node: number for number, node in enumerate(module.graph.nodes)}
    lines = [str(tuple(x.shape)) for x in artifact.inputs]
    for node in module.graph.nodes:
        does = f"{node.op} {node.target}" if node.op in ("call_function", "call_method") else node.op
        if node.op == "call_module":
            layer = module.get_submodule(str(node.target))
            does = f"{layer!r} {[tuple(value.shape) for value in layer.state_dict().values()]}"
        elif node.op == "get_attr":
            does = f"{node.op} {tuple(getattr(operator.attrgetter(str(node.target))(module), 'shape', ()))}"
        given = map_arg((node.args, dict(node.kwargs)), lambda other: f"%{place[other]}")
        lines.append(f"{does} {given}")
    return lines
