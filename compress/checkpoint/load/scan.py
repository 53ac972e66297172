"""What a pickle would do, told from its opcodes before any of them is carried out.

torch's restricted unpickler calls whatever stands on its list, `torch.FloatTensor(10**11)` included, and builds dictionaries
whose keys take for ever to hash. So the opcodes are gone through once on a stack of stand-ins: which globals are named, which
of them are called, and whether the file is of the kind that torch.save writes.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, NamedTuple

MAX_OPCODES = 5_000_000
MAX_TUPLE = 100_000
MAX_LARGE_INTEGERS = 1000

_LARGE = 2**61 - 1  # Python's hash of an integer is its rest by this: multiples of it all collide
_OPCODES = """
    PROTO GLOBAL NEWOBJ REDUCE BUILD APPEND APPENDS SETITEM SETITEMS MARK TUPLE TUPLE1 TUPLE2 TUPLE3 NONE NEWFALSE NEWTRUE
    EMPTY_TUPLE EMPTY_LIST EMPTY_DICT EMPTY_SET BININT BININT1 BININT2 BINFLOAT BINUNICODE SHORT_BINSTRING BINPERSID BINGET
    LONG_BINGET BINPUT LONG_BINPUT LONG1 STOP
"""
_SUPPORTED = frozenset(_OPCODES.split())
"""Opcodes that torch's restricted unpickler knows: those of protocol 2."""


@dataclass
class Scan:
    """What was seen in a pickle.

    Attributes:
        globals: every `module.name` that it would look up, in order.
        called: those that it calls or makes objects of.
        protocol: of pickle.
        problem: why it is not read, as the end of a sentence; empty where nothing stands against it.
    """

    globals: dict[str, None] = field(default_factory=dict[str, None])
    called: set[str] = field(default_factory=set[str])
    protocol: int = 0
    problem: str = ""


class _Item(NamedTuple):
    """A value on the stack: how many values a tuple holds in all, and its text where it is a string or a global."""

    size: int = 1
    text: str = ""


_PLAIN, _MARK = _Item(), _Item(0, "mark")


def opcodes(file: IO[bytes]) -> Iterator[tuple[pickletools.OpcodeInfo, Any]]:
    """Opcodes of one pickle with their arguments.

    Raises:
        ValueError: it is truncated or no pickle.
    """
    try:
        yield from ((opcode, argument) for opcode, argument, _ in pickletools.genops(file))
    except (MemoryError, OverflowError) as error:  # room for an argument is made before it is read
        raise ValueError("an argument is said to be longer than memory") from error


def scan(file: IO[bytes]) -> Scan:
    """Go through one pickle, from the position of the file to the end of the pickle.

    Raises:
        ValueError: it is truncated or no pickle.
    """
    found, stack, memo, large = Scan(), list[_Item](), dict[int, _Item](), 0
    for count, (opcode, argument) in enumerate(opcodes(file)):
        name = opcode.name
        if name not in _SUPPORTED:
            found.problem = found.problem or f"it holds what torch.save does not write ({name}, pickle protocol {found.protocol})"
        if name == "PROTO":
            found.protocol = int(argument or 0)
        large += isinstance(argument, int) and abs(argument) >= _LARGE
        if count > MAX_OPCODES or large > MAX_LARGE_INTEGERS:
            found.problem = f"it holds more than {MAX_OPCODES} values" if count > MAX_OPCODES else "its numbers are no sizes"
            return found
        try:
            _carry_out(opcode, argument, stack, memo, found)
        except (IndexError, KeyError, ValueError) as error:
            raise ValueError(f"{name} without what it needs") from error
        if stack and stack[-1].size > MAX_TUPLE:
            found.problem = f"it holds a tuple of more than {MAX_TUPLE} values"
            return found
    return found


def _carry_out(opcode: pickletools.OpcodeInfo, argument: object, stack: list[_Item], memo: dict[int, _Item], found: Scan) -> None:
    name = opcode.name
    if name == "MARK":
        stack.append(_MARK)
    elif "PUT" in name or name == "MEMOIZE":
        memo[len(memo) if name == "MEMOIZE" else int(str(argument))] = stack[-1]
    elif "GET" in name:
        stack.append(memo[int(str(argument))])
    else:
        popped = _popped(opcode, stack)
        if name == "REDUCE" or name.startswith("NEWOBJ"):
            found.called.add(popped[0].text)
        if name in ("GLOBAL", "INST"):
            made = _Item(1, str(argument).replace(" ", ".", 1))
        elif name == "STACK_GLOBAL":
            made = _Item(1, ".".join(part.text for part in popped))
        elif "TUPLE" in name:
            made = _Item(1 + sum(part.size for part in popped))
        else:
            made = _Item(1, argument) if isinstance(argument, str) else _PLAIN
        if name in ("GLOBAL", "INST", "STACK_GLOBAL"):
            found.globals[made.text] = None
        stack.extend([made] * len(opcode.stack_after))


def _popped(opcode: pickletools.OpcodeInfo, stack: list[_Item]) -> list[_Item]:
    """What an opcode takes from the stack, marks left out."""
    before = opcode.stack_before
    if pickletools.markobject not in before:
        return [stack.pop() for _ in before][::-1]
    taken: list[_Item] = []
    while (item := stack.pop()) is not _MARK:
        taken.append(item)
    return [stack.pop() for _ in before[: before.index(pickletools.markobject)]][::-1] + taken[::-1]
