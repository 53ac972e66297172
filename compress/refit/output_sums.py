"""Mean and variance per channel of some layers' outputs, added up while the model runs, whoever runs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor, nn

from compress.ranks import ALONE, Ranks


@dataclass
class OutputSums:
    """What was added up so far.

    Attributes:
        sums: of outputs and of their squares, float64, by path of the layer.
        seen: images and positions that they are over.
        calls: of each layer.
    """

    sums: dict[str, list[Tensor]] = field(default_factory=dict[str, list[Tensor]])
    seen: Counter[str] = field(default_factory=Counter[str])
    calls: Counter[str] = field(default_factory=Counter[str])

    def moments(self, ranks: Ranks = ALONE) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and variance by path; what every process has added counts, and some may have added nothing."""
        sums, seen = self.sums, self.seen
        if ranks.count > 1:
            sums, seen = dict[str, list[Tensor]](), Counter[str]()
            for mine, count in ranks.gathered((self.sums, self.seen)):
                seen += count
                for path, new in mine.items():
                    sums[path] = [a + b for a, b in zip(sums[path], new, strict=True)] if path in sums else new
        means = {path: total / seen[path] for path, (total, _) in sums.items()}
        return {path: (means[path], (sums[path][1] / seen[path] - means[path].square()).clamp_min(0)) for path in sums}

    def add(self, path: str, layer: nn.Module, y: Tensor) -> None:
        """One call of a layer."""
        dims = [d for d in range(y.ndim) if d != (y.ndim - 1 if isinstance(layer, nn.Linear) else 1)]
        # float64 on the CPU, since the variance is a difference.
        new = [y.sum(dims).cpu().double(), y.square().sum(dims).cpu().double()]
        self.sums[path] = [a + b for a, b in zip(self.sums[path], new, strict=True)] if path in self.sums else new
        self.seen[path] += y.numel() // len(new[0])
        self.calls[path] += 1


@contextmanager
def watched(module: nn.Module, paths: Sequence[str]) -> Iterator[OutputSums]:
    """Sums of the outputs of some layers, in every call within the block."""
    found = OutputSums()

    def watch(path: str):
        def hook(layer: nn.Module, _: object, y: Tensor) -> None:
            found.add(path, layer, y.detach())

        return hook

    handles = [module.get_submodule(path).register_forward_hook(watch(path)) for path in paths]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
