"""The group that every command belongs to, and how a command is added to it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from compress import __version__
from compress.cli import completion as completion
from compress.cli.guard import EXIT_CODES, Command, Commands, registered
from compress.cli.torchless import quick
from compress.cli.typed_paths import refuse_missing
from compress.user import files, memory


@click.group(cls=Commands, epilog=f"{EXIT_CODES}\n\n\b\nExample:\n  compress run model.pt --data images --target macs=0.5")
@click.version_option(__version__, message="compress %(version)s")
def cli() -> None:
    """Makes a trained neural network smaller and faster, and measures every step of it."""


for each in quick.commands.values():
    cli.add_command(each)


def command(
    *options: Callable[[Command], Command], example: str, data: Callable[[str], object] = files.source
) -> Callable[[Command], click.Command]:
    """A command of `cli`, for which torch is loaded; `data` refuses paths of data that are not there."""

    def register(function: Command) -> click.Command:
        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            refuse_missing(kwargs, data)
            memory.check()
            return function(*args, **kwargs)

        return registered(cli, *options, example=example)(checked)

    return register
