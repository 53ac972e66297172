"""Every refusal of the exporters, as one tree.

ExportError             a model or a path that cannot be exported, with the place where it broke
├── MissingBackend      a package that the format needs is not installed, or cannot be loaded; says what to install
└── ParityError         the exported file does not compute what the model computes
"""

from __future__ import annotations


class ExportError(Exception):
    """A model, a setting or a path that cannot be exported."""


class MissingBackend(ExportError):
    """A package that the format needs is not installed; or it is, and `broken` says why it cannot be loaded."""

    def __init__(self, format: str, missing: str, install: str, broken: str = ""):
        self.format, self.missing, self.install, self.broken = format, missing, install, broken
        why = f"cannot be loaded here ({broken}). Install it afresh" if broken else "is not installed"
        super().__init__(f"Export to {format} needs the package '{missing}', which {why}: {install}")


class ParityError(ExportError):
    """The file's outputs differ from the model's by more than the tolerance."""

    def __init__(self, worst: float, tolerance: float, where: str):
        self.worst, self.tolerance, self.where = worst, tolerance, where
        super().__init__(
            f"The exported file is not the model: {where} differs by up to {worst:.3g}, allowed is {tolerance:.3g}. "
            "The file is not kept; try another opset, and report the model if that does not help."
        )


def first_line(error: BaseException) -> str:
    """The first line of a message that says something."""
    return next((text.strip()[:300] for text in str(error).splitlines() if text.strip()), type(error).__name__)
