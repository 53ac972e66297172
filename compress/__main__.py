"""`python -m compress` and the `compress` script.

Commands that CI calls over and over need none of the settings of a run; they start without them, in a fraction of the time.
"""

from __future__ import annotations

import io
import os
import signal
import sys


def main() -> None:
    """The command line; which half of it is needed, its first word says."""
    from compress.cli.torchless import quick
    from compress.errors import CompressError
    from compress.user.cache_folder import gather
    from exporters import elsewhere

    elsewhere.install()
    try:
        gather()
    except CompressError as error:  # before there is a command that could tell it
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    one_of_several(sys.argv[1:])
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


def one_of_several(words: list[str]) -> None:
    """Where torchrun has started several processes: the first one alone speaks, and of a command that can be shared."""
    count = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if count == 1:
        return
    if os.environ.get("RANK", "0") != "0":
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (to the end of the process)
    if words[:1] != ["run"]:
        what = f"'compress {words[0]}'" if words else "'compress'"
        print(
            f"Error: torchrun has started {count} processes, and {what} works in one; needed is 'compress run' for several. "
            "Leave torchrun out.",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
