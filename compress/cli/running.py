"""`compress run` and `compress demo`: the commands that end with a report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import click

from compress.cli.group import command
from compress.cli.guard import force_option, json_option, out_option, path_argument
from compress.cli.live import LogFormat, shown, telling
from compress.cli.options import LOADING, accepted, given, settings
from compress.cli.terminal import say
from compress.errors import BadInput, GateFailed
from compress.recipe import Recipe

RECIPE = Path("recipe.toml")


@command(
    path_argument("model", required=False),
    click.option("--methods", default="", help="several methods with commas: a run of each, and all of them beside each other"),
    click.option("--recipe", type=click.Path(path_type=Path), help="settings from a TOML file; flags win over it"),
    out_option("out", "folder of the results"),
    *(settings(name) for name in Recipe.model_fields if name != "model"),
    click.option("--dry-run", is_flag=True, help="show the plan and its expected cost, then stop"),
    click.option("--resume", is_flag=True, help="go on from the last finished stage"),
    click.option("--log", default="", help="trackers that are told of the run, with commas: tensorboard, mlflow, wandb, trackio"),
    click.option("--profile", is_flag=True, help="write into OUT/profile where the time of every part went"),
    click.option("--nproc", default=1, show_default=True, help="processes of this machine that share the work"),
    force_option,
    telling,
    json_option,
    example="compress run model.pt --data images --target macs=0.5 --max-drop 0.5",
)
def run(
    model: str | None,
    recipe: Path | None,
    out: Path,
    dry_run: bool,
    quiet: bool,
    log_format: LogFormat,
    as_json: bool,
    **flags: Any,
) -> None:
    """From a model file to a smaller, measured one.

    Without MODEL and --recipe, the recipe.toml in this folder says both ('compress init' writes one); --resume takes that of
    --out. Flags win over either.

    Analyzes MODEL on the training images of --data, removes channels, refits what stays, fine-tunes, exports, and measures
    every stage with the same harness. Everything lands in the folder --out.
    """
    recipe = recipe or nearest(model, out, flags["resume"])
    # Several methods each have a recipe of their own.
    settled = accepted(model, flags) if model and recipe is None and not flags["methods"] else given(flags)
    from compress import api
    from compress.cli.output import print_comparison, print_decision, print_json

    if flags["minimize"] is not None and recipe is None and (flags["target"] is not None or flags["max_drop"] is None):
        why = "with a --target there is nothing to look for" if flags["target"] is not None else "there is no --max-drop"
        say(f"Note: --minimize {flags['minimize']} has no effect, because {why}.", err=True)
    before = written(out) if flags["resume"] else None
    with broken_contract(out, quiet, as_json), shown(quiet, log_format) as progress:
        done = cast(Any, api.run)(model, recipe=recipe, out=out, dry_run=dry_run, progress=progress, **settled)
    if before is not None and before == written(out):
        say(f"The run in {out} was finished already: nothing was done again.", err=True)
    if as_json:
        print_json(done)
    elif flags["methods"]:
        print_comparison(done, out)
    else:
        print_decision(done) if dry_run else closing(done, out, quiet)


def written(out: Path) -> int | None:
    """When the report of a run was written; None where there is none."""
    path = out / "report.json"
    return path.stat().st_mtime_ns if path.is_file() else None


def nearest(model: str | None, out: Path, resume: bool) -> Path | None:
    """The recipe that is meant where none is named: with --resume that of the folder, without a MODEL the one that lies here."""
    if resume and (out / RECIPE).exists():
        return out / RECIPE
    if resume and model is None and not out.exists():
        raise BadInput(f"There is no folder {out} to go on in. Give the --out of a run that began, or leave --resume out.")
    return RECIPE if model is None and RECIPE.exists() else None


@contextmanager
def broken_contract(out: Path, quiet: bool, as_json: bool) -> Iterator[None]:
    """A run that does not keep its contract has a report all the same, which is shown before the error."""
    try:
        yield
    except GateFailed as error:
        if error.report is not None and not as_json:
            closing(error.report, out, quiet)
        raise


def closing(report: Any, out: Path, quiet: bool) -> None:
    """The end of a run."""
    from compress.cli.closing import print_report

    print_report(report, out, quiet)


@command(
    path_argument("model", required=False),
    settings(*LOADING, "data", "max_drop", "target", "method", "export", "epochs", "device"),
    click.option("--yes", "-y", is_flag=True, help="ask nothing, and take what is most likely"),
    force_option,
    telling,
    json_option,
    example="compress init model.pt --data images",
)
def init(model: str | None, yes: bool, force: bool, quiet: bool, log_format: LogFormat, as_json: bool, **flags: Any) -> None:
    """Look at MODEL and this folder, ask at most five questions, and write recipe.toml and data.toml for `compress run`.

    MODEL and --data are looked for in this folder where they are not given. Only what differs from the defaults is written, with
    what it is for; nothing is written unless model and data can be opened and go together.
    """
    from compress import api
    from compress.cli.output import print_json
    from compress.cli.tables import told

    with shown(quiet, log_format, still=not yes) as progress:
        made = api.init(model, yes=yes, ask=asked, force=force, progress=progress, **given(flags))
    if as_json:
        print_json(made)
        return
    for note in made.notes if not quiet else ():
        told(f"Note: {note}")
    told(f"Written: {', '.join(map(str, made.files))}.")
    say(f"next     {made.command}")


def asked(question: str, default: str, known: Sequence[str]) -> str:
    """The answer of whoever sits at the terminal."""
    kind = click.Choice(list(known)) if known else click.STRING
    try:
        return click.prompt(question, default=default, type=kind, show_default=bool(default), err=True)
    except click.Abort:
        raise BadInput("Nobody answered, so nothing was written. --yes asks nothing, and takes what is most likely.") from None


@command(
    out_option("demo-out", "folder of the demonstration"),
    settings("target", "epochs", "threads", "device", "seed"),
    force_option,
    telling,
    json_option,
    example="compress demo --out demo-out",
)
def demo(out: Path, force: bool, quiet: bool, log_format: LogFormat, as_json: bool, **flags: Any) -> None:
    """Train a small net on scikit-learn's digits, then compress it: a whole run in about a minute."""
    from compress import api
    from compress.cli.output import print_json
    from compress.commands.demo import ARCH

    with broken_contract(out / "run", quiet, as_json), shown(quiet, log_format) as progress:
        report = api.demo(out=out, force=force, progress=progress, **given(flags))
    if as_json:
        print_json(report)
        return
    closing(report, out / "run", quiet)
    say(f"The dense model is {out / 'model.pt'}: other commands open it with --arch {ARCH} --data digits.")
