"""What an export leaves behind, as plain records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Parity:
    """How far the file's outputs were from the model's on real inputs.

    Attributes:
        worst_abs: largest absolute difference over all outputs and samples; of the output that came closest to its tolerance.
        tolerance: what that output was allowed (exporters/parity.py says why).
        samples: inputs that were compared.
        batch_sizes: batch sizes that were run.
    """

    worst_abs: float
    tolerance: float
    samples: int
    batch_sizes: tuple[int, ...]


@dataclass(frozen=True)
class Exported:
    """A finished file.

    Attributes:
        format: a name in `EXPORTERS`.
        path: the file.
        sha256: of the file at `path`.
        bytes: size on disk, weights kept beside the file included.
        opset: version of the operator set; None where the format has none.
        parity: None where it was switched off.
    """

    format: str
    path: Path
    sha256: str
    bytes: int
    opset: int | None
    parity: Parity | None


@dataclass(frozen=True)
class Availability:
    """Whether a format can be exported here: the versions that do it, or what is missing and how to get it."""

    works: bool
    detail: str
    install: str
