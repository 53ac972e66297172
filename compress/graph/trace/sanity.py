"""Checks of values in a forward: `assert`, or an `if` that raises. Where one answer raises, the forward goes on with the other.

No graph holds a check: the example inputs have passed it.
"""

from __future__ import annotations

import dis
import functools
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, cast

from compress.graph.trace.lines import of_torch, their_file

_TRACING = str(Path(__file__).with_name("trace.py"))
"""Who called the forward: frames behind are not the model's."""

_RAISES = -1
"""Where a way through the code ends that raises, in the place of an instruction."""
_BEFORE = ("TO_BOOL", "CALL", "PRECALL", "CACHE", "NOT_TAKEN")
"""What may stand between the instruction that asks and the jump: the call of `bool(x)`, `x.item()`, `any([...])`."""
_ELSEWHERE = ("JUMP", "RETURN", "YIELD", "SEND", "FOR_ITER", "STORE", "DELETE", "SETUP", "WITH", "EXCEPT", "RERAISE", "IMPORT")
"""Parts of names of instructions behind which a way is no longer one to a raise, or leaves something behind."""


def theirs(frame: FrameType) -> FrameType:
    """The innermost frame that is not torch's own: the forward that asks."""
    while of_torch(frame.f_code.co_filename) and frame.f_back is not None:
        frame = frame.f_back
    return frame


def passing(frame: FrameType) -> bool | None:
    """With which truth value the check that asks for one passes; None where it is no check, but a choice."""
    return None if _caught(frame) else _passing(frame.f_code, frame.f_lasti)


def checked(frame: FrameType) -> bool:
    """Whether a value that is asked for goes into a check and nowhere else, as in `if x.max().item() > 3: raise`."""
    return not _caught(frame) and _checked(frame.f_code, frame.f_lasti)


def _caught(frame: FrameType | None) -> bool:
    """Whether a forward goes on after what is raised here: then both answers have a way of their own."""
    while frame is not None and frame.f_code.co_filename != _TRACING:
        if their_file(frame.f_code.co_filename) and _catches(frame.f_code, frame.f_lasti):
            return True
        frame = frame.f_back
    return False


@functools.cache
def _catches(code: CodeType, instruction: int) -> bool:
    handlers = {
        entry.target for entry in cast(Any, dis.Bytecode(code)).exception_entries if entry.start <= instruction < entry.end
    }
    # A `with` has a handler, too, which raises on.
    return any("WITH_EXCEPT_START" not in [step.opname for step in _from(code, handler)[:3]] for handler in handlers)


@functools.cache
def _passing(code: CodeType, instruction: int) -> bool | None:
    steps = _from(code, instruction)
    jump = next((step for step in steps if step.opname not in _BEFORE), None)
    return _passes(code, jump) if jump is not None and _decides(jump) else None


@functools.cache
def _checked(code: CodeType, instruction: int) -> bool:
    for step in _from(code, instruction):
        if _decides(step):
            return _passes(code, step) is not None
        if step.opname == "POP_TOP" or any(part in step.opname for part in _ELSEWHERE):
            break
    return False


def _from(code: CodeType, instruction: int) -> list[dis.Instruction]:
    return [step for step in dis.get_instructions(code) if step.offset >= instruction]


def _passes(code: CodeType, jump: dis.Instruction) -> bool | None:
    """With which truth value a jump does not lead to a raise."""
    jumped, on_true = int(jump.argval), jump.opname.endswith("TRUE")
    ahead = _from(code, jump.offset + 1)[0].offset
    # Where a second condition stands between (`assert a and b`), all ways lead to a raise or to where this jump does.
    if _ends(code, ahead, jumped) <= {_RAISES, jumped}:
        return on_true
    return not on_true if _ends(code, jumped, None) == {_RAISES} else None


def _decides(step: dis.Instruction) -> bool:
    return step.opname.endswith(("_IF_TRUE", "_IF_FALSE"))


def _ends(code: CodeType, start: int, jumped: int | None) -> set[int]:
    """Where the ways from an instruction end that only look at conditions: a raise, or instructions that do something else."""
    steps = _from(code, start)
    done = False  # a statement of its own: nothing happens behind a raise, but before a second condition it would
    for at, step in enumerate(steps):
        if step.opname == "RAISE_VARARGS":
            return {_RAISES}
        if _decides(step) and not done and int(step.argval) > step.offset:
            return _ends(code, steps[at + 1].offset, jumped) | {int(step.argval)}
        if step.offset == jumped or any(part in step.opname for part in _ELSEWHERE):
            break
        done = done or step.opname == "POP_TOP"
    return {start}
