"""What every command shares: its errors are one sentence with an exit code, or JSON; and the flags that are no settings.

Nothing here is slow to import, so that commands which CI calls answer at once.
"""

from __future__ import annotations

import functools
import json
import shutil
import signal
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click

from compress.cli.help_pages import Page, summaries
from compress.cli.terminal import say
from compress.errors import BadInput, CompressError, GateFailed, Interrupted, NotEnoughMemory, Terminated, UnsupportedModel
from compress.report.escape import printable
from compress.user import memory

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]
MOST = 2000
"""Characters of a message: a file may hold a name without an end."""
EXIT_CODES = (
    "Exit codes: 0 ok, 1 internal, 2 bad input, 3 infeasible, 4 unsupported model, 5 gate failed, "
    "130 interrupted, 143 terminated."
)


def registered(group: click.Group, *options: Callable[[Command], Command], example: str) -> Callable[[Command], click.Command]:
    """A command of a group whose help ends with an example and whose errors are one sentence."""

    def register(function: Command) -> click.Command:
        built = guarded(function)
        for option in reversed(options):
            built = option(built)
        return group.command(function.__name__, cls=Page, epilog=f"\b\nExample:\n  {_in_lines(example)}")(built)

    return register


def _in_lines(example: str) -> str:
    """A command as a shell takes it, in lines of which none is longer than 80 columns on a page of help."""
    lines = textwrap.wrap(example, 70, break_long_words=False, break_on_hyphens=False)
    return " \\\n    ".join(lines)


def path_argument(name: str, required: bool = True, nargs: int = 1) -> Callable[[Command], Command]:
    """A file that the command looks at itself, because it can say more than that it is missing."""
    return click.argument(name, required=required, nargs=nargs)


def out_option(default: str, text: str) -> Decorator:
    """`--out`, with the place that the command writes to by default."""
    return click.option("--out", "-o", type=click.Path(path_type=Path), default=default, show_default=True, help=text)


def json_option(function: Command) -> Command:
    """`--json`: standard output is one JSON document, errors included; what a person reads stays on standard error."""
    return click.option("--json", "as_json", is_flag=True, help="print JSON for a program to read, errors included")(function)


def force_option(function: Command) -> Command:
    """`--force`: replace what is there."""
    return click.option("--force", is_flag=True, help="replace what another run left there")(function)


def guarded(function: Command) -> Command:
    """Every error becomes one sentence and its exit code; `--debug` shows where it came from."""

    @click.option("--debug", is_flag=True, help="show the traceback of an error")
    @functools.wraps(function)
    def guarded_function(*args: Any, debug: bool, **kwargs: Any) -> Any:
        as_json, logs = kwargs.get("as_json", False), kwargs.get("log_format") == "json"
        try:
            with terminable("resume" in kwargs or "join" in kwargs):
                return function(*args, **kwargs)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except KeyboardInterrupt as error:
            refuse(*interruption(error, kwargs.get("resume"), "join" in kwargs), as_json, logs)
        except Exception as error:
            if debug:
                traceback.print_exc(file=sys.stderr)
            refuse(*sentence(error), kind(error), as_json, logs)

    return guarded_function


@contextmanager
def terminable(wanted: bool) -> Generator[None]:
    """SIGTERM stops the command as Ctrl-C does, where that is wanted and can be: only the main thread hears signals."""
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def interruption(error: KeyboardInterrupt, resume: bool | None, join: bool = False) -> tuple[str, int, str]:
    """What is said about Ctrl-C and SIGTERM, the exit code, and the kind.

    Args:
        error: what stopped the command.
        resume: whether it was given; None where a command has no such flag.
        join: whether the command has that flag, by which it is gone on with.
    """
    stopped = error if isinstance(error, Interrupted) else Interrupted()
    if join:
        said = f"{stopped.word}; finished trials are kept: repeat the command with --join to go on."
    elif resume is None:
        said = f"{stopped.word}."
    elif resume and not stopped.done:
        said = f"{stopped.word}; whatever was finished before is kept: repeat the command to go on."
    else:
        said = str(stopped)
    return said, stopped.exit_code, type(stopped).__name__


def refuse(message: str, exit_code: int, kind: str, as_json: bool, logs: bool = False) -> NoReturn:
    """One sentence on standard error, as JSON with `--log-format json`; with `--json` a document on standard output, too."""
    message = printable(" ".join(message.split()))[:MOST]
    if logs:
        from compress.cli.live import json_line

        json_line("error", kind=kind, message=message, exit_code=exit_code)
    else:
        told = f"Error: {message}"
        if sys.stderr.isatty():  # which would break words
            wide = shutil.get_terminal_size().columns
            told = textwrap.fill(told, max(wide, 10), break_long_words=False, break_on_hyphens=False)
        say(told, err=True)
    if as_json:
        print_error(message, exit_code, kind)
    raise click.exceptions.Exit(exit_code)


def print_error(message: str, exit_code: int, kind: str) -> None:
    """{"error": {"kind": ..., "message": ..., "exit_code": ...}} on standard output."""
    click.echo(json.dumps({"error": {"kind": kind, "message": message, "exit_code": exit_code}}, indent=1, ensure_ascii=False))


class Commands(click.Group):
    """A group whose refusals of the command line itself are JSON as well, where `--json` stands in it."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Every command with its whole first sentence."""
        summaries(self, ctx, formatter)

    def main(self, args: Sequence[str] | None = None, *rest: Any, **settings: Any) -> Any:
        """As in click, but that a reader who has seen enough (`| head`) is no error."""
        before = sys.stdout
        try:
            return self._main(args, *rest, **settings)
        except SystemExit as end:
            if sys.stdout is not before:  # click puts another one there when nobody reads any more
                end.code = 0
            raise

    def _main(self, args: Sequence[str] | None, *rest: Any, **settings: Any) -> Any:
        """As in click, whose own way to tell a wrong option is text."""
        words = list(sys.argv[1:] if args is None else args)
        if "--json" not in words or not settings.pop("standalone_mode", True):
            return super().main(words, *rest, **settings)
        try:
            code = super().main(words, *rest, standalone_mode=False, **settings)
        except click.ClickException as error:
            error.show()
            print_error(error.format_message(), error.exit_code, "BadInput")
            code = error.exit_code
        sys.exit(code if isinstance(code, int) else 0)


def kind(error: Exception) -> str:
    """The name of an error as a program reads it: that of its class, `BadInput` where the system refuses a file."""
    from exporters.errors import ExportError

    if isinstance(error, CompressError | ExportError):
        return type(error).__name__
    if memory.short(error):
        return NotEnoughMemory.__name__
    return "BadInput" if isinstance(error, OSError) else "InternalError"


def sentence(error: Exception) -> tuple[str, int]:
    """What the user reads about an error, and the exit code."""
    if isinstance(error, CompressError):
        return str(error), error.exit_code
    from exporters.errors import ExportError, MissingBackend, ParityError

    if isinstance(error, ParityError):
        return str(error), GateFailed.exit_code
    if isinstance(error, MissingBackend):
        return str(error), UnsupportedModel.exit_code
    if isinstance(error, ExportError):
        # The system's refusal, not the model.
        return str(error), BadInput.exit_code if isinstance(error.__cause__, OSError) else UnsupportedModel.exit_code
    if memory.short(error):
        told = str(error).strip().partition("\n")[0] or type(error).__name__
        remedy = "Free some, or raise the limit that it may have, then repeat."
        return f"There is too little memory: {told}. {remedy}", NotEnoughMemory.exit_code
    if isinstance(error, OSError):
        return f"The system refuses: {error}. Make room or choose another place, then repeat.", BadInput.exit_code
    return (
        f"Internal failure, not your input: {type(error).__name__}: {error}. --debug shows where it happened.",
        CompressError.exit_code,
    )
