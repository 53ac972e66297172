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
class Closeness:
    """How near the file's outputs were to the model's on the whole; what a format with fewer bits is held to.

    Attributes:
        relative: root mean square of the difference as a share of that of the model's outputs.
        agreement: share of samples (pixels, for maps) whose largest value of the first output is of the same class; None where
            there are no classes to choose from.
        samples: inputs that were compared.
        allowed: upper end of `relative` that was asked for; None where the format has a parity instead.
        no_number: share of the model's own outputs that are no number (NaN or infinite), in the file as in torch.
    """

    relative: float
    agreement: float | None
    samples: int
    allowed: float | None = None
    no_number: float = 0.0


@dataclass(frozen=True)
class Exported:
    """A finished file.

    Attributes:
        format: a name in `EXPORTERS`.
        path: the file.
        sha256: of the file at `path`.
        bytes: size on disk, weights kept beside the file included.
        opset: version of the operator set; None where the format has none.
        parity: None where it was switched off, or where the format has fewer bits than the model.
        closeness: on the same samples; None where it was switched off.
        kept_float: layers that a quantized file computes in float, because their quantization moved the outputs most.
    """

    format: str
    path: Path
    sha256: str
    bytes: int
    opset: int | None
    parity: Parity | None
    closeness: Closeness | None = None
    kept_float: tuple[str, ...] = ()


@dataclass(frozen=True)
class Availability:
    """Whether a format can be exported here: the versions that do it, or what is missing and how to get it."""

    works: bool
    detail: str
    install: str
