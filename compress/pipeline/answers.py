"""Models and files as functions of tensors, to count quality with."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import exporters
from compress.artifact import Artifact
from compress.data.splits import Split
from compress.measure import quality
from compress.measure.drop import SLICES
from compress.ranks import Ranks
from exporters import runtimes

_SAME = 1e-4
"""Relative to the largest output: float32 sums in another order."""


@dataclass(frozen=True)
class FileAnswer:
    """An exported file as a function of tensors; one that takes a fixed batch is given that many at a time.

    Another process of a run gets the files themselves, since it may be on another machine.
    """

    format: str
    path: Path
    threads: int
    loaded: runtimes.Loaded
    folder: object = None
    """A temporary one that goes with this object."""

    def __call__(self, *inputs: Tensor) -> Tensor:
        fixed = self.loaded.shapes[0][0] if self.loaded.shapes else 0
        # Contiguous, since numpy shares the memory with the tensor.
        arrays = [x.detach().cpu().contiguous() for x in inputs]
        # copy: a runtime may use its output buffer again for the next part.
        found = [
            torch.from_numpy(self.loaded.run([x.numpy() for x in part])[0].copy())[:real] for part, real in parts(arrays, fixed)
        ]
        return torch.cat(found).to(inputs[0].device)

    def __reduce__(self) -> Any:
        beside = [self.path, *self.path.parent.glob(f"{self.path.stem}.*bin"), *self.path.parent.glob(f"{self.path.name}.data")]
        return _arrived, (self.format, self.path.name, {file.name: file.read_bytes() for file in beside}, self.threads)


def _arrived(name: str, file: str, files: Mapping[str, bytes], threads: int) -> FileAnswer:
    folder = tempfile.TemporaryDirectory(prefix="compress-")
    for part, data in files.items():
        (Path(folder.name) / part).write_bytes(data)
    return replace(answers(name, Path(folder.name) / file, threads), folder=folder)


def answers(name: str, path: Path, threads: int = 0) -> FileAnswer:
    """An exported file of a format; `threads` 0 takes every core."""
    return FileAnswer(name, path, threads, runtimes.load(exporters.RUNTIME[name], path, threads=threads))


def counted(
    ranks: Ranks,
    answer: Callable[..., Any],
    split: Split,
    metric: quality.Metric,
    device: torch.device,
    teacher: Callable[..., Any] | None,
) -> quality.Counted:
    """What a metric adds up over a split, of which every process takes its share of the batches."""
    batches = split.batches(quality.BATCH, device=device, only=ranks.share(split.count(quality.BATCH)).numbers)
    return quality.count(answer, batches, metric, device, teacher, SLICES, ranks)


def parts(inputs: Sequence[Tensor], size: int) -> Iterator[tuple[list[Tensor], int]]:
    """Batches of `size` (0: everything at once) and the number of real samples in each; the last one repeats its last sample."""
    count = len(inputs[0])
    for start in itertools.count(0, size or count):
        if start >= count:
            return
        part = [x[start : start + size] if size else x for x in inputs]
        real = len(part[0])
        yield [torch.cat([x, x[-1:].expand(size - real, *x.shape[1:])]) if size > real else x for x in part], real


def quickest(
    of: Artifact, path: Path, device: torch.device, samples: Iterable[tuple[Tensor, ...]], threads: int = 0
) -> Callable[..., Any]:
    """The model, or on a CPU its ONNX file: up to three times as fast, and taken where it gives the same on the samples.

    Args:
        of: the model, with one output; any other answers itself.
        path: its ONNX file.
        device: where quality is counted.
        samples: real inputs, in batches.
        threads: of the file's runtime; 0 takes every core.
    """
    if device.type != "cpu" or not path.exists():
        return of.module
    try:
        answer = answers("onnx", path, threads)
        with torch.no_grad():
            for inputs in samples:
                expected, found = of.on(device)(*inputs), answer(*inputs)
                same = isinstance(expected, Tensor) and expected.shape == found.shape
                if not same or not torch.allclose(found, expected, rtol=0, atol=_SAME * float(expected.abs().max())):
                    return of.module
    except exporters.ExportError:
        return of.module
    return answer
