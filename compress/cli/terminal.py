"""What is written to a terminal. Names and messages may come from a stranger's file, and a terminal obeys some characters."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap

import click

from compress.report.escape import printable


def say(text: str = "", err: bool = False) -> None:
    """Write a line for a person to read."""
    echo(printable(text), err)


def columns() -> int:
    """Of the terminal that standard output goes to; 0 where it goes to none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def flow(text: str) -> None:
    """A line for a person to read, broken between words where the terminal is narrower; a word stays whole, however long."""
    text, wide = printable(text), columns()
    if not wide or len(text) <= wide:
        say(text)
        return
    # Columns do not stand below each other any more.
    for line in textwrap.wrap(" ".join(text.split()), max(wide, 10), break_long_words=False, break_on_hyphens=False):
        say(line)


def echo(text: str, err: bool = False) -> None:
    """Write text; where nobody reads standard output any more, as behind `| head`, the command goes on to its exit code."""
    # A locale without these characters ends no command: they stand as escapes there.
    encoding = (sys.stderr if err else sys.stdout).encoding or "utf-8"
    try:
        click.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=err)
    except BrokenPipeError:
        if err:
            raise
        nobody_reads()


def nobody_reads() -> None:
    """Standard output leads nowhere from now on: what is still in its buffer would be written, and fail, when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
