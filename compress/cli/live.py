"""What a person sees on standard error while a command works: bars, one line, lines with the time, JSON, or warnings alone.

a terminal of 60 columns and more    a bar for the whole command and one for the step in progress
a narrower one                       one line: 3/6 finetune, epoch 2 of 3, about 2 min left
none (a file, a pipe, CI)            a line with the time for every step that begins
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, cast

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from compress.cli.terminal import say
from compress.errors import CompressWarning
from compress.progress import Milestone, about
from compress.report.escape import printable

Command = Callable[..., Any]
Told = Callable[[str, float, str], None]
LogFormat = Literal["text", "json"]
NARROW = 60
"""Columns from which there is room for bars."""
OFTEN = 0.25
"""Share of a step behind which a program that reads JSON is told again."""


def telling(function: Command) -> Command:
    """`--quiet` and `--log-format`: what stands on standard error while a command works; `shown` takes both."""
    # With click's own choice a wrong value is refused before anything is opened.
    form = click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="of progress, warnings and errors: text, or a JSON document a line",
    )
    quiet = click.option("--quiet", "-q", is_flag=True, help="no progress; warnings and errors stay")
    return quiet(form(function))


@dataclass
class Now:
    """Where a command is, made from what it tells; shares never go back within a step."""

    clock: Callable[[], float] = time.monotonic
    stage: Milestone | None = None
    what: str = ""
    share: float = 0.0
    detail: str = ""
    overall: float = 0.0
    _began: float = field(default=0.0)
    _stage_began: float = field(default=0.0)

    def __post_init__(self) -> None:
        self._began = self.clock()

    def update(self, what: str, share: float, detail: str) -> bool:
        """Take in what is told; whether another step begins."""
        if isinstance(what, Milestone):
            self.stage, self.what, self.share, self.detail = what, "", 0.0, ""
            self._stage_began = self.clock()
            return True
        # The same words again after their end, or from the beginning: another pass, not a way back.
        new = what != self.what or (share < self.share and (self.share >= 1 or share <= 0.1))
        self.share = share if new else max(share, self.share)
        self.what, self.detail = what, detail
        return new

    @property
    def left(self) -> float | None:
        """Seconds until the command is expected to end."""
        if self.stage is None or self.stage.left is None:
            return None
        return max(self.stage.left - (self.clock() - self._stage_began), 0.0)

    def done(self) -> float | None:
        """Share of the whole command, by time; it never goes back where an estimate was wrong."""
        if (left := self.left) is None:
            return self.overall or None
        spent = self.clock() - self._began
        self.overall = max(self.overall, min(spent / max(spent + left, 1e-9), 0.99))
        return self.overall

    def remaining(self) -> str:
        """The same in words; empty where nobody knows."""
        left = self.left
        return "" if left is None else f"{about(left)} left" if left >= 1 else "nearly done"


@contextmanager
def shown(quiet: bool = False, log_format: LogFormat = "text", still: bool = False) -> Iterator[Told]:
    """A callback (what, share done, detail) that shows what is told in the way that suits the place.

    `still`: somebody is asked meanwhile, so that nothing may move on the terminal.
    """
    console = Console(stderr=True, highlight=False)
    if log_format == "json":
        with told_at_once(lambda line: json_line("warning", message=line.removeprefix("Warning: "))):
            yield _nothing if quiet else json_lines()
    elif quiet:
        with told_at_once(_line):
            yield _nothing
    elif still or not console.is_terminal or console.is_dumb_terminal:
        with told_at_once(_line):
            yield lines()
    else:
        # Ctrl-C writes ^C behind the last line; in a full one that would begin another, and leave one behind.
        wide = max(console.width - len("^C") - 1, 1)
        with (_bars if console.width >= NARROW else _one_line)(Console(stderr=True, highlight=False, width=wide)) as told:
            yield told


def _nothing(what: str, share: float, detail: str = "") -> None:
    """No progress."""


@contextmanager
def told_at_once(tell: Callable[[str], None]) -> Iterator[None]:
    """Warnings of this package as one line each, when they come up; those of others stay with Python."""
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, CompressWarning):
            tell(f"Warning: {message}")
        else:
            before(message, category, *where, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always", CompressWarning)
        warnings.showwarning = show
        yield


@contextmanager
def noting(quiet: bool = False, log_format: LogFormat = "text") -> Iterator[None]:
    """What was inferred of the data, once each behind the result: for commands whose result has no place for it."""
    heard, logger = dict[str, None](), logging.getLogger("compress.data")
    handler = logging.Handler()
    handler.emit = lambda record: heard.setdefault(record.getMessage())
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
    for note in () if quiet else heard:
        _line(f"Note: {note}") if log_format == "text" else json_line("note", message=note)


def lines(clock: Callable[[], str] = lambda: datetime.now().strftime("%H:%M:%S")) -> Told:
    """For log files: every step once, when it begins, behind the time of day."""
    now = Now()
    seen: set[str] = set()

    def update(what: str, share: float, detail: str = "") -> None:
        if isinstance(what, Milestone):
            seen.clear()
        now.update(what, share, detail)
        if what not in seen:
            seen.add(what)
            left = f" ({now.remaining()})" if isinstance(what, Milestone) and now.left is not None else ""
            _line(f"{clock()} {'' if isinstance(what, Milestone) or now.stage is None else '  '}{what}{left} ...")

    return update


def json_lines() -> Told:
    """For programs: one JSON document a line, when a step begins and now and then while it goes on."""
    now = Now()
    told = [0.0]

    def update(what: str, share: float, detail: str = "") -> None:
        begins = now.update(what, share, detail)
        if begins or now.share >= told[0] + OFTEN:
            told[0] = now.share
            stage = None if now.stage is None else {"name": now.stage.name, "number": now.stage.number, "count": now.stage.of}
            left = None if now.left is None else round(now.left, 1)
            json_line("progress", stage=stage, step=now.what or None, share=round(now.share, 4), detail=detail, seconds_left=left)

    return update


def json_line(event: str, **facts: object) -> None:
    """One event for a program that follows along."""
    stamp = datetime.now().astimezone().isoformat(timespec="seconds")
    _line(json.dumps({"time": stamp, "event": event, **facts}, ensure_ascii=True))


def _line(text: str) -> None:
    """To standard error; where nobody reads that any more, the work goes on."""
    try:
        say(text, err=True)
    except BrokenPipeError:
        return


@contextmanager
def _bars(console: Console) -> Iterator[Told]:
    words = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", max_width=34))
    detail = TextColumn("{task.fields[detail]}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
    columns: tuple[ProgressColumn, ...] = (words, BarColumn(bar_width=16), TimeElapsedColumn(), detail)
    with Progress(*columns, console=console, transient=True, expand=True) as bars, _told_above(console):
        now, step = Now(), cast("list[Any]", [])
        whole = bars.add_task("compress", total=None, detail="")

        def update(what: str, share: float, detail: str = "") -> None:
            begins = now.update(what, share, detail)
            if now.stage is not None:
                done = now.done()
                bars.update(whole, description=_shown(now.stage), detail=now.remaining(), total=1.0, completed=done or 0.0)
            if begins and step:
                bars.remove_task(step.pop())
            if now.what:
                if not step:
                    step.append(bars.add_task("", total=None, detail=""))
                bars.update(step[0], total=1.0 if now.share else None, completed=now.share)
                bars.update(step[0], description=f"  {_shown(now.what)}", detail=_shown(now.detail))

        yield update


@contextmanager
def _one_line(console: Console) -> Iterator[Told]:
    words = TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1))
    with Progress(words, console=console, transient=True, expand=True) as bars, _told_above(console):
        now, task = Now(), bars.add_task("", total=None)

        def update(what: str, share: float, detail: str = "") -> None:
            now.update(what, share, detail)
            bars.update(task, description=_shown(short(now)))

        yield update


def short(now: Now) -> str:
    """Where a command is, the most important words first: 3/6 finetune 40 %, about 2 min left."""
    stage = "" if now.stage is None else f"{now.stage.number}/{now.stage.of} {now.stage.name}"
    step = now.what if now.what and (now.stage is None or now.what != now.stage.name) else ""
    done = f"{now.share:.0%}" if now.share else ""
    return ", ".join(part for part in (" ".join(filter(None, (stage, done))), now.remaining(), step, now.detail) if part)


def _told_above(console: Console) -> Any:
    return told_at_once(lambda line: console.print(_shown(line)))


def _shown(text: str) -> str:
    return escape(printable(str(text)))
