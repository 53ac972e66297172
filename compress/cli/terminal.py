"""What is written to a terminal. Names and messages may come from a stranger's file, and a terminal obeys some characters."""

from __future__ import annotations

import click

from compress.report.escape import printable


def say(text: str = "", err: bool = False) -> None:
    """Write a line for a person to read."""
    click.echo(printable(text), err=err)
