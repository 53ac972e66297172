"""What the layers of a model take at several widths, in ONNX Runtime, here or on the device of `--on`: timed once, and kept.

    widths drawn -> channels removed, nothing fitted -> a file each -> the runtime's own times of its operations -> `LayerTimes`

Remembered in the user's cache folder by all that times depend on, as races are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.fx import GraphModule

from compress.artifact import Artifact, apply
from compress.edits import Keep, Plan
from compress.entropy.allocate import choices
from compress.measure.layer_times import Layer, LayerTimes, by_kind, fitted, layers
from compress.pipeline.latency_cache import LatencyCache
from compress.pipeline.remembered import made, recalled, remember
from compress.progress import Progress
from compress.remote.ssh import device, readable, scripts, spoken, workshop
from compress.selection.budget import removable
from compress.user import files
from exporters.standalone import leftovers
from exporters.standalone.kernels import kernels

NETWORKS = 20
"""How many are timed; four numbers of every kind of layer are fitted to them."""
_REDUCED = 0.8  # share of the groups that lose channels in each
_FILE = "layer_times.json"


def layer_times(artifact: Artifact, races: LatencyCache, multiple: int, progress: Progress) -> LayerTimes:
    """Times of layers whose widths are multiples of `multiple`, where they are narrower than in the model.

    Raises:
        BadInput: the device of the recipe cannot be reached, or does not run the model.
        ExportError: the model cannot be written.
    """
    key = f"{races.key(artifact, artifact)} {multiple}"
    known = made(LayerTimes, recalled(_FILE, LayerTimes).get(key))
    if known is not None and known.multiple == multiple:
        return known
    every = layers(artifact.module, artifact.inputs, races.recipe.batch)
    widths: list[dict[str, tuple[int, int]]] = []
    times: list[dict[str, float]] = []
    for sizes, found in _timed(_drawn(artifact, multiple, races.recipe.seed), every, races):
        widths.append(sizes)
        times.append(by_kind(found))
        progress("time layers", len(times) / NETWORKS, f"widths in multiples of {multiple}")
    found_out = fitted(every, widths, times, multiple)
    remember(_FILE, LayerTimes, {key: dataclasses.asdict(found_out)})
    return found_out


def _drawn(artifact: Artifact, multiple: int, seed: int) -> Iterator[Artifact]:
    random = np.random.default_rng(seed)
    groups = removable(artifact.module, artifact.channels)
    for _ in range(NETWORKS):
        counts = [int(random.choice(choices(g.channels, multiple))) if random.random() < _REDUCED else g.channels for g in groups]
        edits = (Keep(g.name, g.channels, tuple(range(n))) for g, n in zip(groups, counts, strict=True) if n < g.channels)
        yield apply(Plan(tuple(edits)), artifact)


def _widths(module: GraphModule, every: Sequence[Layer]) -> dict[str, tuple[int, int]]:
    shapes = {one.path: tuple(module.get_parameter(f"{one.path}.weight").shape) for one in every}
    return {path: (shape[0], shape[1]) for path, shape in shapes.items()}


def _timed(
    networks: Iterator[Artifact], every: Sequence[Layer], races: LatencyCache
) -> Iterator[tuple[dict[str, tuple[int, int]], Sequence[Mapping[str, Any]]]]:
    """Widths of each network, and what the runtime tells of it. One is in memory at a time."""
    recipe = races.recipe
    with leftovers.folder() as folder:
        if recipe.on is None:
            for network in networks:
                races.write(network, folder / "network.onnx")
                yield _widths(network.module, every), kernels(folder / "network.onnx", recipe.threads, recipe.batch)
            return
        widths: list[dict[str, tuple[int, int]]] = []
        for network in networks:
            races.write(network, folder / f"{len(widths)}.onnx")
            widths.append(_widths(network.module, every))
        names = [f"{number}.onnx" for number in range(len(widths))]
        with workshop(device(recipe.on), recipe.on_python) as shop:
            shop.bring({**scripts(), **{name: folder / name for name in names}})
            done = shop.run("kernels.py", f"--batch={recipe.batch}", f"--threads={recipe.threads}", *names)
            with readable(shop.there, done, "kernels.py"):
                yield from zip(widths, files.parsed_json(spoken(done)), strict=True)


def timeable(artifact: Artifact, races: LatencyCache) -> bool:
    """Whether the runtime tells what its operations take, and the model has layers whose times are known by kind."""
    return races.runtime == "ort" and bool(layers(artifact.module, artifact.inputs, 1))
