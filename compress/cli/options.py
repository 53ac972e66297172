"""Flags of the command line, made from the fields of `Recipe`: a setting has one name, one help text, one check."""

from __future__ import annotations

import functools
import json
import types
import typing
from typing import Any, Literal

import click
from pydantic.fields import FieldInfo

from compress.cli.guard import Command, Decorator
from compress.cli.terminal import say
from compress.errors import BadInput
from compress.method_table import method
from compress.recipe import RENAMED, RENAMED_UNITS, RENAMED_VALUES, Recipe, make

LOADING = ("arch", "arch_kwargs", "trust_pickle", "trust_recipe", "weights_entry", "output", "input_shape")
"""What every command that opens a model file takes."""


def settings(*names: str) -> Decorator:
    """Flags for these fields of `Recipe`, in this order. A flag that is not given arrives as None or ()."""
    made = [flag(name, Recipe.model_fields[name]) for name in names]
    made += [renamed(old, new) for old, new in RENAMED.items() if new in names]

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
        return click.option(dashed, name, type=OneOf(typing.get_args(kind)), help=text)
    if typing.get_origin(kind) is tuple:
        return click.option(dashed, name, multiple=True, metavar="TEXT", help=f"{text}; may be repeated")
    if typing.get_origin(kind) is dict:
        return click.option(dashed, name, multiple=True, metavar="KEY=VALUE", help=f"{text}; may be repeated")
    return click.option(dashed, name, type=kind, help=text)


class OneOf(click.Choice[str]):
    """A choice that knows what its values were called before."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        now = RENAMED_VALUES.get(value, value)
        if now != value:
            say(f"Note: {value} is called {now} now.", err=True)
        return super().convert(now, param, ctx)


def renamed(old: str, new: str) -> Decorator:
    """The hidden option of a setting's old name, which says what it is called now."""

    def note(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
        if value not in (None, ()):
            say(f"Note: --{old} is called --{new} now.", err=True)
        return value

    several = typing.get_origin(without_none(Recipe.model_fields[new].annotation)) is tuple
    return click.option(f"--{old}", old, multiple=several, hidden=True, callback=note)


def without_none(annotation: Any) -> Any:
    """`float | None` -> `float`."""
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return next(part for part in typing.get_args(annotation) if part is not type(None))
    return annotation


def given(flags: dict[str, Any]) -> dict[str, Any]:
    """The settings that the user typed, in the types of `Recipe`."""
    typed = {name: value for name, value in flags.items() if value is not None and value != ()}
    unit = str(typed.get("target", "")).partition("=")[0]
    if unit in RENAMED_UNITS:
        say(f"Note: the target {unit} is called {RENAMED_UNITS[unit]} now.", err=True)
    if "arch_kwargs" in typed:
        typed["arch_kwargs"] = dict(key_value(pair) for pair in typed["arch_kwargs"])
    return typed


def accepted(model: str, flags: dict[str, Any]) -> dict[str, Any]:
    """The same, where flags alone make the recipe: what none accepts is refused before torch is loaded, which takes seconds.

    Raises:
        BadInput: a value out of range, or settings that do not go together.
    """
    typed = given(flags)
    method(make(**{name: value for name, value in typed.items() if name in Recipe.model_fields}, model=model).method)
    return typed


def key_value(pair: str, flag: str = "--arch-kwargs") -> tuple[str, Any]:
    """`num_classes=10` -> ("num_classes", 10); a value that is not JSON is text."""
    key, equals, value = pair.partition("=")
    if not key or not equals:
        raise BadInput(f"{flag} is '{pair}'; needed is KEY=VALUE, such as num_classes=10.")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, {"True": True, "False": False, "None": None}.get(value, value)
