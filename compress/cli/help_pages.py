"""`--help` on one screen and `--help-all` in groups, for commands with more options than anybody reads at once."""

from __future__ import annotations

from typing import Any

import click

from compress.cli.terminal import say

GROUPS: dict[str, tuple[str, ...]] = {
    "Essential": ("data", "target", "max_drop", "method", "epochs", "arch", "input_shape", "export", "device"),
    "Model and data": (
        "arch_kwargs", "weights_entry", "output", "trust_pickle", "trust_recipe", "metric", "loss", "calibration", "plan",
        "memory", "seed", "allow_doubtful",
    ),
    "Width": ("tolerance", "align", "inputs", "reconstruct", "iterations", "order"),
    "Depth": ("depth", "linearize", "cheap", "entropy"),
    "Training": (
        "optimizer", "lr", "weight_decay", "batch_size", "warmup", "distill", "temperature", "precision", "clip", "ema",
        "patience", "entropy_guidance", "fsdp",
    ),
    "Measuring and export": (
        "minimize", "on_noise", "runtime", "batch", "threads", "rounds", "on", "on_python", "opset", "calibrator",
        "int8_error", "qat",
    ),
    "Research": (
        "spatial", "reward", "episodes", "initial", "variants", "structure", "scope", "prune", "prune_of", "rewind",
        "from_scratch", "methods",
    ),
}  # fmt: skip
"""Settings as people look for them; a test puts every one into exactly one group."""
OF_THE_COMMAND = "This command"
MANY = 20
"""Options from which a command shows the essential ones only."""
BRIEF = {
    "data": "images in a folder, .npz, a dataset or data.toml",
    "target": "how small: macs=0.5, params=0.25 or size=6.5MB",
    "max_drop": "points of quality that may be lost",
    "method": "a name from 'compress methods'  [default: entropic]",
    "epochs": "of fine-tuning, 0 for none  [default: 3]",
    "arch": "whose weights these are, as torchvision:resnet18",
    "input_shape": "such as 3x224x224, where it cannot be inferred",
    "export": "onnx, onnx-int8, ... of 'compress doctor'",
    "device": "auto, cpu, cuda, cuda:N or mps",
}
"""What the essential settings are for, in a line each."""

CALLED_OTHERWISE = {
    **dict.fromkeys(("--to", "--as", "--type"), ("--format", "--export")),
    **dict.fromkeys(("--shape", "--size", "--input-size"), ("--input-shape",)),
    **dict.fromkeys(("--dataset", "--images"), ("--data",)),
}
"""What other tools call an option -> what it may be called here."""


class Page(click.Command):
    """A command whose `--help` shows what most people need, where it has many options."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """With `--help-all`, where the command has that."""
        found = super().get_params(ctx)
        return [*found[:-1], _help_all(), found[-1]] if self.long else found

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As in click, but that an option of one value that is given two is told, and one that is called otherwise proposed."""
        try:
            _tell_twice(self.make_parser(ctx).parse_args(list(args))[2])
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            known = {name for one in self.params for name in one.opts}
            meant = [name for name in CALLED_OTHERWISE.get(error.option_name, ()) if name in known]
            if not meant:
                raise
            said = f"No such option '{error.option_name}'. Did you mean '{meant[0]}'?"
            raise click.NoSuchOption(error.option_name, said, ctx=error.ctx) from None

    @property
    def long(self) -> bool:
        """Whether it has more options than one screen holds."""
        return sum(isinstance(one, click.Option) and not one.hidden for one in self.params) > MANY

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The options in groups, all of them or the first."""
        if not self.long:
            super().format_options(ctx, formatter)
            return
        every = bool(ctx.meta.get(_EVERY))
        found = {
            one.name or "": one for one in self.get_params(ctx) if isinstance(one, click.Option) and one.get_help_record(ctx)
        }
        for name, settings in grouped(list(found)).items():
            if every or name in ("Essential", OF_THE_COMMAND):
                rows = [(one, record) for one in settings if (record := found[one].get_help_record(ctx))]
                with formatter.section(name):
                    formatter.write_dl([record if every else _brief(one, *record) for one, record in rows], col_max=28)
        if not every:
            formatter.write_paragraph()
            formatter.write_text(f"{len(found)} options in all: --help-all shows them, in groups.")

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """All of the text, or its first paragraph on the one screen."""
        if self.long and not ctx.meta.get(_EVERY):
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text((self.help or "").partition("\n\n")[0])
        else:
            super().format_help_text(ctx, formatter)


_EVERY = "compress.help_all"


def _help_all() -> click.Option:
    def show(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
        if wanted and not ctx.resilient_parsing:
            ctx.meta[_EVERY] = True
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()

    text = "Show every option, in groups, and exit."
    return click.Option(["--help-all"], is_flag=True, expose_value=False, is_eager=True, callback=show, help=text)


def grouped(names: list[str]) -> dict[str, list[str]]:
    """The options of a command by group; what is no setting belongs to the command."""
    known = {one for group in GROUPS.values() for one in group}
    found = {title: [one for one in group if one in names] for title, group in GROUPS.items()}
    first = found.pop("Essential")
    own = [one for one in names if one not in known]
    return {title: ones for title, ones in {"Essential": first, OF_THE_COMMAND: own, **found}.items() if ones}


def _brief(setting: str, name: str, text: str) -> tuple[str, str]:
    """One line of an option: for settings of their own, else without what stands behind a semicolon."""
    words, mark, default = text.partition("  [default: ")
    return name.partition(" / ")[0], BRIEF.get(setting) or words.partition("; ")[0].partition(", ")[0] + mark + default


def summaries(group: click.Group, ctx: click.Context, formatter: click.HelpFormatter) -> None:
    """The commands with their whole first sentence, which click cuts off."""
    found: list[tuple[str, Any]] = [(name, group.get_command(ctx, name)) for name in group.list_commands(ctx)]
    rows = [(name, one.get_short_help_str(limit=10**6)) for name, one in found if one is not None and not one.hidden]
    with formatter.section("Commands"):
        formatter.write_dl(rows)


def _tell_twice(given: list[click.Parameter]) -> None:
    """Say which value counts of an option that is there twice: the last, so that scripts can go on with a line of others."""
    options = [one for one in given if isinstance(one, click.Option) and not (one.multiple or one.count)]
    for option in dict.fromkeys(options):
        # A flag that can only be set means the same however often it is there.
        if options.count(option) > 1 and (not option.is_flag or option.secondary_opts):
            say(f"Note: {option.opts[0]} is given more than once; the last one counts.", err=True)
