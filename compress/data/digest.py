"""What two machines, or two processes, compare to know that they work on the same data."""

from __future__ import annotations

import hashlib
import re

import torch
from torch import Tensor

from compress.data.splits import Data, Split
from compress.data.stores import Store, Stored

_SOME = 64  # samples of a part that are looked at where not all are in memory
_BRIGHT = 8  # pictures of a part whose brightness is told
_APART = 1.5  # of 255: decoders of another version round otherwise


def exact(data: Data) -> str:
    """Sixteen digits: which samples, in which order, all answers that are in memory, and samples throughout, as decoded."""
    found = hashlib.sha256(repr(data.spec).encode())
    for split in _parts(data):
        for store in split.inputs:
            found.update(_bytes(_some(split, store)))
        found.update(_answers(split))
    return found.hexdigest()[:16]


def told(data: Data) -> str:
    """The same for machines whose libraries may decode a picture otherwise by a little: counts, answers, brightness, in words."""
    spec = data.spec
    found, bright = hashlib.sha256(f"{spec.task} {spec.classes} {spec.shape}".encode()), list[str]()
    for split in _parts(data):
        found.update(_answers(split))
        for store in split.inputs:
            values = _some(split, store)
            if values.dtype == torch.uint8:
                bright += [f"{x.float().mean():.1f}" for x in values[:: max(1, len(values) // _BRIGHT)]]
            elif isinstance(store, Stored):  # what code of the user's makes may be drawn anew each time
                found.update(_bytes(values))
    counts = f"{len(data.train)} training, {len(data.held_out)} held-out and {len(data.test)} test samples"
    return f"{counts}, answers {found.hexdigest()[:12]}" + (f", brightness {' '.join(bright)}" if bright else "")


def same(one: str, other: str) -> bool:
    """Whether two texts of `told` are of the same data."""
    (words, bright), (others, brights) = _split(one), _split(other)
    return (
        words == others
        and len(bright) == len(brights)
        and all(abs(a - b) <= _APART for a, b in zip(bright, brights, strict=True))
    )


def _split(text: str) -> tuple[str, list[float]]:
    words, _, numbers = text.partition(", brightness ")
    return words, [float(n) for n in re.findall(r"\d+\.\d", numbers)]


def _parts(data: Data) -> list[Split]:
    return [split for split in (data.train, data.held_out, data.test) if len(split)]


def _some(split: Split, store: Store) -> Tensor:
    """Samples that lie as far apart as they can."""
    return store.read(split.index[torch.linspace(0, len(split) - 1, min(_SOME, len(split))).long()])


def _answers(split: Split) -> bytes:
    """Which samples, and their targets: of files some."""
    targets = split.targets
    if targets is None:
        return _bytes(split.index)
    known = targets.read(split.index) if isinstance(targets, Stored) else _some(split, targets)
    return _bytes(split.index) + _bytes(known)


def _bytes(values: Tensor) -> bytes:
    return f"{values.dtype}{tuple(values.shape)}".encode() + values.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
