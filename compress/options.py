"""Flags of the command line, made from the fields of `Recipe`: a setting has one name, one help text, one check."""

from __future__ import annotations

import functools
import json
import signal
import sys
import threading
import traceback
import types
import typing
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn

import click
from pydantic.fields import FieldInfo

from compress.errors import BadInput, CompressError, GateFailed, Interrupted, Terminated, UnsupportedModel
from compress.recipe import Recipe

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

LOADING = ("arch", "arch_kwargs", "trust_pickle", "input_shape")
"""What every command that opens a model file takes."""


def settings(*names: str) -> Decorator:
    """Flags for these fields of `Recipe`, in this order. A flag that is not given arrives as None or ()."""
    made = [flag(name, Recipe.model_fields[name]) for name in names]

    def decorate(function: Command) -> Command:
        return functools.reduce(lambda inner, option: option(inner), reversed(made), function)

    return decorate


def flag(name: str, field: FieldInfo) -> Decorator:
    """The click option of one field. Ranges are checked by `Recipe`, so that TOML and Python meet the same check."""
    kind = without_none(field.annotation)
    dashed, text = "--" + name.replace("_", "-"), field.description or ""
    if field.default not in (None, "", ()) and field.default_factory is None:
        shown = ",".join(map(str, field.default)) if isinstance(field.default, tuple) else str(field.default)
        text = f"{text}  [default: {shown.lower() if kind is bool else shown}]".strip()
    if kind is bool:
        return click.option(f"{dashed}/--no-{dashed[2:]}", name, default=None, help=text)
    if typing.get_origin(kind) is Literal:
        return click.option(dashed, name, type=click.Choice(typing.get_args(kind)), help=text)
    if typing.get_origin(kind) is tuple:
        return click.option(dashed, name, multiple=True, metavar="TEXT", help=f"{text}; may be repeated")
    if typing.get_origin(kind) is dict:
        return click.option(dashed, name, multiple=True, metavar="KEY=VALUE", help=f"{text}; may be repeated")
    return click.option(dashed, name, type=kind, help=text)


def without_none(annotation: Any) -> Any:
    """`float | None` -> `float`."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return next(part for part in typing.get_args(annotation) if part is not type(None))
    return annotation


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """The settings that the user typed, in the types of `Recipe`."""
    typed = {name: value for name, value in flags.items() if value is not None and value != ()}
    if "arch_kwargs" in typed:
        typed["arch_kwargs"] = dict(key_value(pair) for pair in typed["arch_kwargs"])
    return typed


def key_value(pair: str) -> tuple[str, Any]:
    """`num_classes=10` -> ("num_classes", 10); a value that is not JSON is text."""
    key, equals, value = pair.partition("=")
    if not key or not equals:
        raise BadInput(f"--arch-kwargs is '{pair}'; needed is KEY=VALUE, such as num_classes=10.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, {"True": True, "False": False, "None": None}.get(value, value)


def out_option(default: str, text: str) -> Decorator:
    """`--out`, with the place that the command writes to when nothing is said."""
    return click.option("--out", type=click.Path(path_type=Path), default=default, show_default=True, help=text)


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
        as_json = kwargs.get("as_json", False)
        try:
            with terminable("resume" in kwargs):
                return function(*args, **kwargs)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except KeyboardInterrupt as error:
            refuse(*interruption(error, kwargs.get("resume")), as_json)
        except Exception as error:
            if debug:
                traceback.print_exc(file=sys.stderr)
            refuse(*sentence(error), kind(error), as_json)

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


def interruption(error: KeyboardInterrupt, resume: bool | None) -> tuple[str, int, str]:
    """What is said about Ctrl-C and SIGTERM, the exit code, and the kind. `resume`: None where a command has no such flag."""
    stopped = error if isinstance(error, Interrupted) else Interrupted()
    if resume is None:
        said = "Interrupted."
    elif resume and not stopped.done:
        said = "Interrupted; what was finished before is kept: repeat the command to go on."
    else:
        said = str(stopped)
    return said, stopped.exit_code, type(stopped).__name__


def refuse(message: str, exit_code: int, kind: str, as_json: bool) -> NoReturn:
    """One sentence on standard error, with `--json` a document on standard output too, and the end."""
    message = " ".join(message.split())
    click.echo(f"Error: {message}", err=True)
    if as_json:
        print_error(message, exit_code, kind)
    raise click.exceptions.Exit(exit_code)


def print_error(message: str, exit_code: int, kind: str) -> None:
    """{"error": {"kind": ..., "message": ..., "exit_code": ...}} on standard output."""
    click.echo(json.dumps({"error": {"kind": kind, "message": message, "exit_code": exit_code}}, indent=1, ensure_ascii=False))


class Commands(click.Group):
    """A group whose refusals of the command line itself are JSON as well, where `--json` stands in it."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **settings: Any) -> Any:
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
    return "BadInput" if isinstance(error, OSError) else "InternalError"


def sentence(error: Exception) -> tuple[str, int]:
    """What the user reads about an error, and the exit code."""
    if isinstance(error, CompressError):
        return str(error), error.exit_code
    from exporters.errors import ExportError, MissingBackend, ParityError

    if isinstance(error, ParityError):
        return str(error), GateFailed.exit_code
    if isinstance(error, MissingBackend):
        return str(error), BadInput.exit_code
    if isinstance(error, ExportError):
        return str(error), UnsupportedModel.exit_code
    if isinstance(error, OSError):
        return f"The system refuses: {error}. Make room or choose another place, then repeat.", BadInput.exit_code
    return (
        f"Internal failure, not your input: {type(error).__name__}: {error}. --debug shows where it happened.",
        CompressError.exit_code,
    )
