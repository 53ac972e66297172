"""Commands that a CI job or a device calls: they look at what is there, need no torch, and start at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from compress.cli.guard import EXIT_CODES, Command, Commands, force_option, json_option, path_argument, registered
from compress.cli.terminal import columns, flow, say

LIMITS: tuple[tuple[str, type, str], ...] = (
    ("--max-drop", float, "points of quality that may be lost beside the dense model"),
    ("--min-speedup", float, "times as fast as the dense model that the result must be"),
    ("--max-latency", float, "milliseconds that a call may take"),
    ("--max-size", str, "size of the result's file, such as 6.5MB"),
    ("--max-macs", str, "multiply-accumulates, such as 1.2G, or a share of the dense model's, such as 0.5"),
    ("--max-params", str, "parameters, such as 1.5M, or a share of the dense model's"),
)


@click.group(cls=Commands, epilog=EXIT_CODES)
def quick() -> None:
    """Commands that answer at once; `compress.cli.main` has them too."""


def command(*options: Callable[[Command], Command], example: str) -> Callable[[Command], click.Command]:
    """A command of `quick`."""
    return registered(quick, *options, example=example)


def file_option(name: str, text: str) -> Callable[[Command], Command]:
    """A file that is read or written."""
    return click.option(name, type=click.Path(path_type=Path), help=text)


TARGET = (
    click.option("--target", default="local", show_default=True, help="where it runs: local, or ssh://user@host:port"),
    click.option("--python", default="python3", show_default=True, help="the Python of an ssh target"),
    file_option("--ssh-config", "what ssh reads instead of ~/.ssh/config"),
)
"""Where a command looks at what it is given: here, or on another machine."""


@command(
    path_argument("report"),
    *(click.option(name, type=kind, help=text) for name, kind, text in LIMITS),
    file_option("--baseline", "an earlier result that --tolerance compares with"),
    click.option(
        "--tolerance",
        multiple=True,
        metavar="FIGURE=PERCENT",
        help="latency=5%, quality=0.5 (points), size, params, macs or memory: how much worse than the baseline; may be repeated",
    ),
    click.option("--update-baseline", is_flag=True, help="write this result to --baseline instead, if the other rules are kept"),
    click.option("--export", help="judge this exported file, such as onnx-int8, instead of the result it was made from"),
    click.option(
        "--on-noise",
        type=click.Choice(["pass", "fail"]),
        help="what becomes of a rule when the interval is too wide to tell  [default: pass for --max-drop, as in a run; else "
        "fail]",
    ),
    file_option("--junit", "write the verdicts for a CI server"),
    file_option("--markdown", "write the verdicts for a job's summary"),
    json_option,
    example="compress gate out/report.json --max-drop 0.5 --min-speedup 1.5 --max-size 6.5MB",
)
def gate(report: str, as_json: bool, **rules: Any) -> None:
    """Whether the REPORT of a run keeps the rules of a project: exit code 0, or 5 where it does not.

    REPORT is a report.json or the folder of a run. The whole 95 % interval of a figure has to keep the rule; where the interval
    holds the limit, or a model only guesses, the verdict is "cannot tell", and --on-noise says what becomes of that.

    "Undecided" in the last line: nothing failed, because nothing could be told. The exit code is 0 then, as for "Passed".
    """
    from compress.commands.gate import gate as judge

    found = judge(report, **rules)
    if as_json:
        from compress.cli.output import print_json

        print_json(found)
    else:
        from compress.report.rulings import blocks, lines, sentence

        table, wide = lines(found.rules), columns()
        for line in blocks(found.rules) if wide and max(map(len, table), default=0) > wide else table:
            flow(line)
        if found.rules:
            flow(sentence(found.rules, found.passed))
        if found.updated:
            flow(f"{found.updated} is written.")
        for note in found.notes:
            flow(f"Note: {note}")
    if not found.passed:
        raise click.exceptions.Exit(5)


@command(
    path_argument("package"),
    click.option("--hashes-only", is_flag=True, help="run nothing"),
    click.option("--rounds", type=click.IntRange(0), default=50, show_default=True, help="rounds of timing; 0 for none"),
    click.option("--threads", type=click.IntRange(0), default=0, help="threads of the runtime; 0 leaves that to it"),
    file_option("--allowed-signers", "who may have signed, a file as ssh-keygen -Y reads it"),
    click.option("--identity", help="the one of them that must have signed"),
    click.option("--digest", help="the digest that the package must have"),
    *TARGET,
    json_option,
    example="compress verify package.tar.gz --allowed-signers allowed_signers",
)
def verify(package: str, as_json: bool, **settings: Any) -> None:
    """Whether PACKAGE is whole, computes here what it computed where it was made, and how fast: exit code 0, 5 where it does not.

    PACKAGE is a package.tar.gz or the folder that it was unpacked into. A device without this program runs the verify.py inside,
    or is reached by --target ssh://..., which copies the package there, checks and times it, and removes it again.
    """
    from compress.commands.verify import verify as check
    from exporters.standalone.verify import lines

    found = check(package, **settings)
    if as_json:
        from compress.cli.output import print_json

        print_json(found)
    else:
        for line in lines(found):
            flow(line)
    if not found.passed:
        raise click.exceptions.Exit(found.exit_code)


@command(
    path_argument("runs", nargs=-1),
    click.option("--out", type=click.Path(path_type=Path), help="folder for compare.md, compare.json and compare.svg"),
    force_option,
    json_option,
    example="compress compare out/entropic out/magnitude --out comparison",
)
def compare(runs: tuple[str, ...], out: Path | None, force: bool, as_json: bool) -> None:
    """The results of RUNS beside each other, and which of them no other one beats in speed and quality together.

    RUNS are folders of runs, or their report.json. What makes the comparison unfair is said below the table.
    """
    from compress.cli.output import print_comparison, print_json
    from compress.commands.compare import compare as beside

    found = beside(*runs, out=out, force=force)
    print_json(found) if as_json else print_comparison(found, out)


@command(
    path_argument("runs", nargs=-1),
    file_option("--out", "the file; by default report.html in the folder of the run, or of several here"),
    force_option,
    example="compress report out",
)
def report(runs: tuple[str, ...], out: Path | None, force: bool) -> None:
    """One page about a run, or about several beside each other: a file that a browser opens, and that loads nothing.

    RUNS are folders of runs, or their report.json. Every run leaves its page, report.html, in its own folder; this makes it anew,
    and says what a run lacks that was cut off, failed, or was written by another version.
    """
    from compress.commands.report_page import report_page

    say(f"{report_page(*runs, out=out, force=force)} is written: open it with a browser.")


@command(path_argument("old"), path_argument("new"), json_option, example="compress diff main/report.json out/report.json")
def diff(old: str, new: str, as_json: bool) -> None:
    """What changed from the report OLD to the report NEW: settings, environment, every stage, the result and its exports.

    Each change of a figure has its 95 % interval; "worse" is in percent of the old value, for quality in points.
    """
    from compress.cli.output import print_differences, print_json
    from compress.commands.diff import diff as compare

    found = compare(old, new)
    if as_json:
        print_json(found)
    elif found:
        print_differences(found)
    else:
        say("Nothing changed.")


@command(json_option, example="compress methods --json")
def methods(as_json: bool) -> None:
    """The methods that --method takes: what goes, where it is described, what it needs and costs."""
    from compress.cli.output import print_json, print_methods
    from compress.commands.methods import methods as listing

    listed = listing()
    print_json(listed) if as_json else print_methods(listed)


@command(
    path_argument("run"),
    path_argument("repository", required=False),
    click.option("--out", type=click.Path(path_type=Path), default="hub", show_default=True, help="the folder that is made"),
    click.option("--name", help="of the model, on its card  [default: that of the repository, or of the folder]"),
    click.option("--license", default="", help="of the model, an identifier of the hub, such as mit"),
    click.option("--public", is_flag=True, help="a repository that is made is public"),
    click.option("--allow-broken", is_flag=True, help="push a run that broke its contract, too, and say so on the card"),
    force_option,
    json_option,
    example="compress push out --out hub --license mit",
)
def push(run: str, repository: str | None, as_json: bool, **settings: Any) -> None:
    """The result of RUN as the folder of a repository on Hugging Face, with a model card; sent only where REPOSITORY is named.

    REPOSITORY is OWNER/NAME; it is made where there is none, private unless --public says otherwise, with the login of
    'hf auth login'. Without it, the folder shows what would be sent.
    """
    from compress.commands.push import push as prepared

    made = prepared(run, repository, **settings)
    if as_json:
        from compress.cli.output import print_json

        print_json(made)
    else:
        say(f"{made.folder}: {len(made.files)} files, {made.bytes:,} bytes; README.md is the model card")
        say(f"sent: {made.url}" if made.url else "Nothing was sent: name a repository, OWNER/NAME, to send it.")
