"""Errors of the functions of `compress` name keywords where those of the command line name flags."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from inspect import signature
from os import PathLike
from typing import Any, TypeVar, cast, get_args

from compress.errors import CompressError, Interrupted
from compress.method_table import METHODS
from exporters.errors import ExportError

F = TypeVar("F", bound=Callable[..., Any])
_FLAG = re.compile(r"'(?:compress|pip) [^']*'|(?<![\w-])--([a-z][a-z0-9-]*)(?: (?!--)(\S+?)(?=[.,;:)]*(?:\s|$)))?")
"""A line for a shell, which stays; or a flag, and the word behind it."""
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")
_END = re.compile(r"[.,;:)]|$")
_PROSE = ("out", "alone", "only", "instead", "allows", "decides")
"""Words behind a flag that can end a clause, and are no value of it."""


def in_keywords(message: str, function: Callable[..., Any]) -> str:
    """What an error says to somebody at a shell, for somebody who called the function: `--max-drop 0.5` is `max_drop=0.5`."""
    # A default says of a parameter whether it is a switch, whose flag has no value.
    # Here, because functions that need no settings are wrapped, too, and load none.
    from compress.recipe import Recipe

    known: dict[str, object] = {name: field.annotation for name, field in Recipe.model_fields.items()}
    known |= {name: type(parameter.default) for name, parameter in signature(function).parameters.items() if name not in known}

    def keyword(found: re.Match[str]) -> str:
        name, value = (found[1] or "").replace("-", "_"), found[2]
        if name not in known:
            return found[0]
        if known[name] is bool:
            return f"{name}=True{'' if value is None else f' {value}'}"
        at_the_end = _END.match(message, found.end()) is not None
        if value is None:
            return f"{name}=" if at_the_end else name
        if _NUMBER.fullmatch(value) or value[0].isupper():  # an upper case word stands for a value
            return f"{name}={value}"
        choices = METHODS if name == "method" else get_args(known[name])
        told = value in choices or re.search(r"\w[:=/.]\w|^\d", value) or (at_the_end and value not in _PROSE)
        return f'{name}="{value}"' if told else f"{name} {value}"

    return _FLAG.sub(keyword, message)


def _in_memory(function: Callable[..., Any], args: tuple[Any, ...], settings: dict[str, Any]) -> bool:
    """Whether the data that the function was called with is in no file."""
    data = settings.get("data", dict(zip(signature(function).parameters, args, strict=False)).get("data"))
    return data is not None and not isinstance(data, str | PathLike)


def speaking_keywords(function: F) -> F:
    """The function, whose errors name its keywords, not the flags of the command line."""

    @wraps(function)
    def called(*args: Any, **settings: Any) -> Any:
        try:
            return function(*args, **settings)
        except (CompressError, ExportError, Interrupted) as error:
            said = in_keywords(str(error), function)
            if "a data.toml" in said and _in_memory(function, args, settings):
                from compress.pipeline.given import in_program

                said = in_program(said)
            error.args = (said, *error.args[1:])
            raise

    return cast(F, called)
