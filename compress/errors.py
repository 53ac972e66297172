"""Every refusal of the package, as one tree; the exit code of each stands beside it.

    CompressError                1   an internal failure
    ├── BadInput                 2   a file, an option or data that cannot be used
    │   ├── EmptyData            2   nothing to look at
    │   ├── NotEnoughMemory      2   memory that the machine, or a limit, does not give
    │   ├── NotWritten           2   a place that cannot be written, or has no room
    │   └── PlanMismatch         2   a plan made for another model
    ├── Infeasible               3   a target that no choice of channels reaches
    ├── UnsupportedModel         4   a model that cannot be traced or has nothing removable
    │   └── WholeDetector        4   a detector with its boxes, where tensors alone will do
    ├── MissingPackage           4   a package that a method needs is not installed
    ├── GateFailed               5   a quality or parity contract that does not hold
    ├── ProcessLost              1   one of several processes of a run ended
    └── StageFailed              1   a stage broke; names the stages that are on disk

Beside it stands what is no error: `Interrupted` (130, Ctrl-C) and `Terminated` (143, SIGTERM), which nothing should take for a
failure of its own and catch.

A message has three parts in one sentence or two: what was found, what was needed, what to do.
`exporters` has a tree of its own (`exporters.ExportError`), because it never imports this package.
"""

from __future__ import annotations

from collections.abc import Sequence

DISTRIBUTION = "entropress"
"""What pip installs; `compress` is the name of the package and the command, and of somebody else's distribution."""


def extra(name: str) -> str:
    """The line that installs an extra: every message that has one takes it from here."""
    return f"pip install '{DISTRIBUTION}[{name}]'"


class CompressError(Exception):
    """Root of every error that this package raises on purpose."""

    exit_code = 1


class BadInput(CompressError):
    """A file, an option or data that cannot be used as it is."""

    exit_code = 2


class CompressWarning(UserWarning):
    """Something that makes a result doubtful: Python's own channel for it, which the command line prints at once."""


class EmptyData(BadInput):
    """No sample where at least one is needed."""


class NotEnoughMemory(BadInput):
    """More memory is needed than there is, or than a limit allows."""


class NotWritten(BadInput):
    """A place that cannot be written, or has no room."""


class PlanMismatch(BadInput):
    """A plan that names layers or channel counts which this model does not have."""


class Infeasible(CompressError):
    """A target outside the range that the model's removable channels allow."""

    exit_code = 3


class UnsupportedModel(CompressError):
    """A model that cannot be traced, or in which nothing can be compressed."""

    exit_code = 4


class WholeDetector(UnsupportedModel):
    """A whole detector where only a model from tensors to tensors will do; `model` is the detector."""

    def __init__(self, message: str, model: object = None):
        super().__init__(message)
        self.model = model


class MissingPackage(CompressError):
    """A package that a method needs is not installed; the message has the line that installs it."""

    exit_code = 4


class ProcessLost(CompressError):
    """One of several processes that share a run ended before the others."""


class Unsteady(CompressError):
    """Times that cannot be told, by no fault of the input: others used the machine, or rounds scatter too much for any claim."""


class GateFailed(CompressError):
    """A contract (quality, parity, exactness) that the result does not keep. `report`: of a run that wrote one."""

    exit_code = 5

    def __init__(self, message: str = "", report: object = None):
        super().__init__(message)
        self.report = report


class StageFailed(CompressError):
    """A stage broke for a reason that is not the user's; `done` names the stages already on disk."""

    def __init__(self, stage: str, done: Sequence[str], cause: BaseException):
        self.stage, self.done = stage, tuple(done)
        kept = f"finished stages are kept ({', '.join(done)}); add --resume to go on" if done else "no stage had finished"
        super().__init__(f"stage '{stage}' failed: {type(cause).__name__}: {cause}. {kept[0].upper()}{kept[1:]}.")


class Interrupted(KeyboardInterrupt):
    """A run was stopped from outside; `done` names the stages that are on disk."""

    exit_code = 130
    word = "Interrupted"

    def __init__(self, done: Sequence[str] = ()):
        self.done = tuple(done)
        kept = f"finished stages are kept ({', '.join(done)}): repeat the command with --resume to go on"
        super().__init__(
            f"{self.word}; {kept}." if done else f"{self.word} before the first stage was finished; nothing is kept."
        )


class Terminated(Interrupted):
    """The same by SIGTERM, as batch systems and containers send it."""

    exit_code = 143
    word = "Terminated"
