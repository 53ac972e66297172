"""`compress tune` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress.cli.group import command
from compress.cli.guard import force_option, json_option, out_option, path_argument
from compress.cli.live import LogFormat, shown, telling
from compress.cli.options import given, settings
from compress.recipe import Recipe


@command(
    path_argument("model", required=False),
    click.option("--trials", default=30, show_default=True, help="how many recipes are looked at, by all workers together"),
    click.option("--runs", type=int, help="how many of them are carried out as runs  [default: a fifth, and six at least]"),
    click.option(
        "--over",
        multiple=True,
        metavar="NAME=VALUES",
        help="what is searched: method=entropic,obs or lr=1e-4..1e-2; may be repeated  [default: what usually pays]",
    ),
    click.option(
        "--storage",
        help="where the study is kept: sqlite:///FILE, postgresql://..., grpc://HOST:PORT or a journal FILE  "
        "[default: a database in --out]",
    ),
    click.option("--study", default="compress", show_default=True, help="name of the study in --storage"),
    click.option("--join", is_flag=True, help="work on the study that is there: from another machine, or after it was cut off"),
    click.option("--recipe", type=click.Path(path_type=Path), help="settings from a TOML file; flags win over it"),
    out_option("tune-out", "folder of the search"),
    *(settings(name) for name in Recipe.model_fields if name not in ("model", "plan", "tolerance")),
    force_option,
    telling,
    json_option,
    example="compress tune model.pt --data images --trials 30 --minimize latency --max-drop 0.5",
)
def tune(model: str | None, out: Path, quiet: bool, log_format: LogFormat, as_json: bool, **flags: Any) -> None:
    """Look for the recipes of MODEL that no other one beats in quality and in what --minimize names.

    Each trial is a run in a folder of its own. What no flag sets is searched: method, target, reconstruction, rates, order,
    iterations, 8 bits. Chosen is by held-out images. The best one, which keeps --max-drop or loses at most a point, is in
    --out/best.

    Several workers share a --storage that all of them reach; each but the first has --join.
    """
    from compress import api
    from compress.cli.output import print_json
    from compress.cli.tables import print_table, told

    with shown(quiet, log_format) as progress:
        found = api.tune(model, out=out, progress=progress, **given(flags))
    if as_json:
        print_json(found)
        return
    print_table(found.columns, found.cells())
    for note in found.notes if not quiet else ():
        told(f"Note: {note}")
    best = "" if found.best is None else f" Trial {found.best} is best/."
    told(f"The search is in {out}: tune.md, tune.json, report.html and, with matplotlib, tune.svg.{best}")
