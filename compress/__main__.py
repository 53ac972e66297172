"""`python -m compress` and the `compress` script.

Commands that CI calls over and over need none of the settings of a run; they start without them, in a fraction of the time.
"""

from __future__ import annotations

import io
import signal
import sys


def main() -> None:
    """The command line; which half of it is needed, its first word says."""
    from compress.cli.torchless import quick
    from compress.user.cache_folder import gather

    gather()
    for stream in (sys.stdout, sys.stderr):
        # In a locale that lacks a character, the rest of the line is worth more than the character.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    try:
        if sys.argv[1:2] and sys.argv[1] in quick.commands:
            quick(prog_name="compress")
        else:
            from compress.cli.main import cli

            cli(prog_name="compress")
    finally:
        # The command is over, and its exit code is settled: taking torch down afterwards takes a good part of a second.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":
    main()
