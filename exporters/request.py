"""What an exporter is asked for: one record for every format, whatever of it a format has a use for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from torch import Tensor, nn

from exporters import capture
from exporters.capture import Subject
from exporters.errors import ExportError

LEAST_SAMPLES = 8
"""The range of an activation over fewer inputs is that of these inputs."""
SLACK = 2.0
"""Samples that a file was not calibrated on may lie further off by this factor before it is refused."""


@dataclass(frozen=True)
class Request:
    """One export.

    Attributes:
        format: a name in `exporters.EXPORTERS`.
        model: any torch module; exported as in eval mode, never changed.
        inputs: example inputs, (batch, ...) each.
        path: of the finished file.
        metadata: written into the file where the format has a place for it.
        samples: batches of real inputs for the comparison; None takes the calibration, or the example inputs.
        opset: of ONNX.
        calibration: batches of real inputs, of which 8 bits take the ranges of activations.
        calibrator: how, a name in `exporters.qdq.CALIBRATORS`.
        int8_error: relative error that 8 bits may cost on the calibration.
        batch: samples per call of a file that takes one batch size only.
        check_parity: False leaves the comparison out, for a file that is timed and thrown away.
    """

    format: str
    model: nn.Module
    inputs: Sequence[Tensor]
    path: Path
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    samples: Iterable[Sequence[Tensor]] | None = None
    opset: int = 18
    calibration: Sequence[Sequence[Tensor]] = ()
    calibrator: str = "minmax"
    int8_error: float = 0.05
    batch: int = 1
    check_parity: bool = True

    @cached_property
    def subject(self) -> Subject:
        """The model as exporters take it.

        Raises:
            ExportError: it does not run on a single sample, or on several.
        """
        return capture.subject(self.model, self.inputs)

    @property
    def real(self) -> Iterable[Sequence[Tensor]]:
        """What the file is compared on."""
        # Real inputs wherever there are any: on random ones activations have other ranges.
        return self.samples or self.calibration or (tuple(self.inputs),)

    @property
    def allowed(self) -> float:
        """The relative error at which an 8-bit file is refused."""
        return SLACK * self.int8_error

    @property
    def ranges(self) -> Sequence[Sequence[Tensor]]:
        """The calibration, where it is enough to take ranges from.

        Raises:
            ExportError: fewer than eight samples.
        """
        count = sum(len(batch[0]) for batch in self.calibration)
        if not count:
            raise ExportError("8 bits need real inputs to take ranges from, and none were given. Add --data.")
        if count < LEAST_SAMPLES:
            raise ExportError(f"There are {count} calibration samples; needed are at least {LEAST_SAMPLES}, better some hundred.")
        return self.calibration
