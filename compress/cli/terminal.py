"""What is written to a terminal. Names and messages may come from a stranger's file, and a terminal obeys some characters."""

from __future__ import annotations

import os
import sys

import click

from compress.report.escape import printable


def say(text: str = "", err: bool = False) -> None:
    """Write a line for a person to read."""
    echo(printable(text), err)


def echo(text: str, err: bool = False) -> None:
    """Write text; where nobody reads standard output any more, as behind `| head`, the command goes on to its exit code."""
    try:
        click.echo(text, err=err)
    except BrokenPipeError:
        if err:
            raise
        nobody_reads()


def nobody_reads() -> None:
    """Standard output leads nowhere from now on: what is still in its buffer would be written, and fail, when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
