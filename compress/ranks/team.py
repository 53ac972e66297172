"""Functions that are called in every process of a run at once: the first process leads, the others wait for what it calls.

    first process    run ... call(function, arguments) ...... run ... call ... stop
    every other      wait ── function(ranks, arguments) ───── wait ── function ── end

Whatever reads and writes files, times, decides or reports happens in the first process alone, as in a run of one process. What
takes long is a function of (ranks, ...), which sums up with `ranks` what the processes found. The others block in a socket while
they wait. What every process has opened by itself, such as the data, is not sent but named.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist

from compress.errors import CompressError, ProcessLost
from compress.ranks.own_threads import threads
from compress.ranks.parcel import packed, unpacked
from compress.ranks.ranks import ALONE, Ranks

T = TypeVar("T")


@dataclass(frozen=True)
class _Call:
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keep: bool


@dataclass(frozen=True)
class _End:
    """The run is over: what came out, or the error it ended with."""

    result: Any
    error: CompressError | None


@dataclass(eq=False)
class Team:
    """The processes of a run.

    Attributes:
        ranks: this one among them.
        store: where a process that ends says why.
        threads: of each process while a function runs in all of them; 0 for as many as it has.
    """

    ranks: Ranks = ALONE
    store: Any = None
    threads: int = 0
    _known: dict[str, object] = field(default_factory=dict[str, object])
    _kept: object = None
    _broken: bool = False

    def introduce(self, objects: Mapping[str, object]) -> None:
        """What every process has of its own, by the same names."""
        self._known |= objects

    def call(self, function: Callable[..., T], arguments: Sequence[Any], keep: bool = False) -> T:
        """function(ranks, *arguments), in every process.

        Args:
            function: of a module, so that it can be named.
            arguments: sent to the others.
            keep: the others keep what they found, until they are told again to keep something; handed on as an argument of a
                later call it is not sent.

        Raises:
            ProcessLost: another process ended.
        """
        if self.ranks.count == 1:
            return function(self.ranks, *arguments)
        broken, self._broken = self._broken, True
        if broken:
            raise lost(self.ranks.count)
        with self.watched(), threads(self.threads):
            self._send(_Call(function, tuple(arguments), keep))
            found = function(self.ranks, *arguments)
            dist.barrier()  # nobody is ahead of somebody who has failed
        self._broken = False
        if keep:
            self._kept = found
        return found

    @property
    def broken(self) -> bool:
        """Whether a call broke off: the others have ended, or are about to."""
        return self._broken

    def keeps(self, value: object) -> bool:
        """Whether the others have what they found when this one found `value`; in a run of one process there are no others."""
        return self.ranks.count == 1 or value is self._kept

    def end(self, result: object, error: CompressError | None) -> None:
        """The first process is done; where a call broke off, the others know already, or will by their connection."""
        if self.ranks.count > 1 and not self._broken:
            with suppress(ProcessLost), self.watched():  # nothing is needed of them any more
                self._send(_End(result, error))

    def serve(self) -> Any:
        """Do what the first process calls, until it ends: the result of the run.

        Raises:
            CompressError: what the run ended with.
            ProcessLost: the first process ended without a word.
        """
        while True:
            with self.watched():
                data = self._received()
            try:
                told = unpacked(data, self._known | {"kept": self._kept})
                if isinstance(told, _End):
                    break
                call = cast("_Call", told)
                with threads(self.threads):
                    found = call.function(self.ranks, *call.arguments)
                    dist.barrier()
            except BaseException as error:
                self.say(error)
                raise
            if call.keep:
                self._kept = found
        if told.error is not None:
            raise told.error
        return told.result

    def say(self, error: BaseException) -> None:
        """Why this process ends, for the first one."""
        if self.store is not None:
            kept = error if isinstance(error, CompressError) else ProcessLost(f"{type(error).__name__}: {error}")
            self.store.set(f"ended/{self.ranks.number}", pickle.dumps(kept))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """A connection that breaks is a process that has ended."""
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "onnection" not in str(error) and "gloo" not in str(error):
                raise
            raise self._lost() from error

    def _lost(self) -> CompressError:
        for number in range(1, self.ranks.count):
            if self.store is not None and self.ranks.number == 0 and self.store.check([f"ended/{number}"]):
                error = pickle.loads(self.store.get(f"ended/{number}"))
                return error if not isinstance(error, ProcessLost) else lost(self.ranks.count, f"process {number}: {error}")
        return lost(self.ranks.count)

    def _send(self, message: object) -> None:
        known = {id(value): name for name, value in self._known.items() if value is not None}
        if self._kept is not None:
            known[id(self._kept)] = "kept"
        data = torch.frombuffer(bytearray(packed(message, known)), dtype=torch.uint8)
        dist.broadcast(torch.tensor([len(data)]), 0)
        dist.broadcast(data, 0)

    def _received(self) -> bytes:
        size = torch.zeros(1, dtype=torch.int64)
        dist.broadcast(size, 0)
        data = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(data, 0)
        return np.asarray(data).tobytes()


def lost(count: int, why: str = "") -> ProcessLost:
    """One of several processes is gone."""
    return ProcessLost(
        f"One of the {count} processes of this run ended{f' ({why})' if why else ''}; needed are all of them. What was finished "
        "is kept: repeat the command with --resume, with as many processes as you like."
    )


ONE = Team()
"""A run of one process."""
