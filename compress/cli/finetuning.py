"""`compress finetune` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compress.cli.group import command
from compress.cli.guard import force_option, json_option, out_option, path_argument
from compress.cli.live import LogFormat, shown, telling
from compress.cli.options import LOADING, given, key_value, settings
from compress.cli.terminal import say

TRAINING = (
    "epochs", "optimizer", "lr", "weight_decay", "batch_size", "warmup", "distill", "temperature", "entropy_guidance",
    "precision", "clip", "ema", "patience",
)  # fmt: skip


@command(
    path_argument("model"),
    click.option("--teacher", help="the dense model, whose outputs are learned with the weight --distill"),
    click.option("--teacher-arch", help="as --arch, for the teacher, where it is a file of weights of another class"),
    click.option(
        "--teacher-arch-kwargs",
        multiple=True,
        metavar="KEY=VALUE",
        help="keyword arguments of the teacher's factory, where they are not those of --arch-kwargs; may be repeated",
    ),
    out_option("tuned.compressed", "folder of the trained model"),
    click.option("--threads", type=click.IntRange(0), default=0, help="threads that it computes with; 0: all cores"),
    settings(*LOADING, "data", "metric", "loss", *TRAINING, "device", "seed"),
    force_option,
    telling,
    json_option,
    example="compress finetune pruned.pt --teacher dense.pt --data images --epochs 3 --out tuned.compressed",
)
def finetune(
    model: str,
    teacher: str | None,
    teacher_arch: str | None,
    out: Path,
    threads: int,
    force: bool,
    quiet: bool,
    log_format: LogFormat,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train MODEL on the images of --data, and on what --teacher makes of them.

    MODEL may have been made smaller by anything: a pickled module, weights with --arch, or a folder model.compressed. What comes
    out is the state after the best epoch on held-out images, as a folder that 'compress export' and the others open; the quality
    on the test data is told before and after. Without labels, a teacher is needed.
    """
    from compress import api
    from compress.cli.output import print_json
    from compress.report import sentences

    pairs = [key_value(pair, "--teacher-arch-kwargs") for pair in flags.pop("teacher_arch_kwargs")]
    typed = given(flags)
    with shown(quiet, log_format) as progress:
        found = api.finetune(
            model,
            typed.pop("data", ""),
            teacher=teacher,
            teacher_arch=teacher_arch,
            teacher_arch_kwargs=dict(pairs) if pairs else None,
            out=out,
            force=force,
            threads=threads,
            progress=progress,
            **typed,
        )
    if as_json:
        print_json(found)
        return
    for note in found.notes:
        say(f"Note: {note}")
    for line in sentences.trained(found.before, found.after, found.teacher):
        say(line)
    say(f"{found.path} is written: compress.load and 'compress export' open it.")
