"""The command line: every command parses its flags, calls the function of the same name in `compress`, and prints.

Nothing here imports torch: `compress --help` answers at once.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import click

from compress.cli import detecting as detecting
from compress.cli import finetuning as finetuning
from compress.cli import running as running
from compress.cli import tuning as tuning
from compress.cli.completion import complete_from
from compress.cli.group import cli, command
from compress.cli.guard import force_option, json_option, out_option, path_argument
from compress.cli.live import LogFormat, noting, shown, telling, told_at_once
from compress.cli.options import LOADING, accepted, given, settings
from compress.cli.tables import told
from compress.cli.terminal import say
from compress.cli.torchless import TARGET
from compress.errors import BadInput
from compress.user import files
from compress.user.wording import many
from exporters.runtimes import RUNTIMES

STATISTICS = ("calibration", "device", "seed")
DECISION = ("method", "target", "tolerance", "inputs", "align", "depth", "linearize")
WHERE = ("auto", *RUNTIMES, "ort-cuda")
TIMING = ("runtime", "batch", "threads", "rounds", "on", "on_python")


@command(
    path_argument("model"),
    settings(*LOADING, "data", *TIMING, *STATISTICS, "spatial", "initial", "epochs", "lr", "batch_size"),
    click.option("--time/--no-time", "timed", default=True, help="whether what linearizing saves is timed"),
    click.option("--probe", is_flag=True, help="instead: at which layer the input is lost, as linear decoders find it"),
    click.option(
        "--plan", type=click.Path(path_type=Path), help="with --probe: a plan.json, and what its model loses beside this one"
    ),
    click.option("--sensitivity", is_flag=True, help="instead: whether two trainings from the beginning need the same weights"),
    click.option("--all", "every", is_flag=True, help="every column of the table"),
    telling,
    json_option,
    example="compress analyze model.pt --data images",
)
def analyze(model: str, every: bool, quiet: bool, log_format: LogFormat, as_json: bool, **flags: Any) -> None:
    """Entropy, redundancy and cost of every layer of MODEL.

    A state entropy of 0 bits means that an activation never changes its state on this data. --all adds how often activations are
    on, which layers have to be reduced to 1x1, the interval of every race, and the "log volume": by how much a layer stretches
    (above 0) or squeezes what goes through it, in nats per value. --no-time leaves the races out. --spatial adds how unlike its
    neighbors a pixel is in the maps behind a layer, and the share of maps that are constant.

    --sensitivity trains three times as --epochs, --lr and --batch-size say, from --initial weights or drawn ones.
    """
    from compress import api
    from compress.cli.analysis import print_analysis
    from compress.cli.output import print_json, print_probing, print_records

    with noting(quiet, log_format), shown(quiet, log_format) as progress:
        found = api.analyze(model, progress=progress, **given(flags))
    if as_json:
        print_json(found)
    else:
        # Agreements of trainings are a list, too.
        rows = isinstance(found, list) and not flags["sensitivity"]
        print_analysis(found, every) if rows else print_records(found) if isinstance(found, list) else print_probing(found)


@command(
    path_argument("model"),
    out_option("plan.json", "where the plan is written"),
    click.option("--apply-to", help="another checkpoint that the plan is carried out on, into the folder model.compressed"),
    settings(*LOADING, "data", *DECISION, *TIMING, *STATISTICS, "allow_doubtful"),
    force_option,
    telling,
    json_option,
    example="compress plan model.pt --data images --target params=0.25 --out plan.json",
)
def plan(
    model: str, out: Path, apply_to: str | None, force: bool, quiet: bool, log_format: LogFormat, as_json: bool, **flags: Any
) -> None:
    """Decide which channels of MODEL stay and which of its layers become one, and write that down.

    MODEL is not touched. `compress apply` carries the plan out on any checkpoint of the same architecture; --apply-to does so at
    once.

    Channel counts are rounded where that is measurably faster, as in a run, unless --align says how.
    """
    settled = accepted(model, flags)
    from compress import api
    from compress.cli.output import print_decision, print_json

    with shown(quiet, log_format) as progress:
        made = api.plan(model, out=out, apply_to=apply_to, force=force, progress=progress, **settled)
    # A shape alone opens the model, without the data.
    opening = LOADING if flags["input_shape"] else (*LOADING, "data")
    line = _line("apply", out, model, flags=flags, names=opening, end=files.elsewhere("model", ".compressed"))
    print_json(made) if as_json else print_decision(made, line)


@command(
    path_argument("plan"),
    path_argument("model"),
    out_option("model.compressed", "folder of the smaller model"),
    settings(*LOADING, "data"),
    force_option,
    example="compress apply plan.json model.pt --input-shape 3x224x224 --out model.compressed",
)
def apply(plan: str, model: str, out: Path, force: bool, **flags: Any) -> None:
    """Carry PLAN out on MODEL: exact surgery, no data, no training.

    The result equals the model whose removed channels were masked; `compress.load` opens it without the model's class.
    MODEL needs --input-shape or --data, unless it is a folder model.compressed.
    """
    from compress import api
    from compress.cli.output import counted

    done = api.apply(plan, model, out=out, force=force, **given(flags))
    both = "this does both" if flags["data"] else "with --data, this does both"
    told(f"{out}: {counted(done.plan.edits)}. Nothing was refitted or trained; {both}, then goes on to its --target:")
    say(_line("run", model, flags={**flags, "plan": plan}, names=(*LOADING, "data", "plan"), end=files.elsewhere("out")))


def _line(*words: object, flags: Mapping[str, Any], names: Sequence[str], end: Sequence[str]) -> str:
    """A command with these settings as they were given, and the words at its end, as a shell takes it."""
    from compress.report.html.command_line import flags as typed

    return shlex.join(["compress", *map(str, words), *typed({name: flags.get(name) for name in names}), *end])


@command(
    path_argument("model", required=False),
    click.argument("layer", required=False),
    click.option("--depth", is_flag=True, help="activations, and what could merge across them, instead of channels"),
    click.option("--reach", is_flag=True, help="share of the model that removing channels can reach, and what stands in the way"),
    settings(*LOADING, "data"),
    json_option,
    example="compress explain model.pt layer1.0.conv1 --input-shape 3x224x224",
)
def explain(model: str | None, layer: str | None, depth: bool, reach: bool, as_json: bool, **flags: Any) -> None:
    """Which channels of MODEL are coupled, which are frozen, and why.

    With LAYER: every tensor that is coupled to the channels of that layer. With --depth: every activation, the segment of layers
    that could become one if it were linearized, or why there is none. With --reach: how much of the model can go, and which
    groups stay, in the order of what they cost. MODEL needs --input-shape or --data, unless it is a folder model.compressed;
    --arch NAME does without a MODEL, because the coupling is not a question of the weights.
    """
    from compress import api
    from compress.cli.output import print_json, print_records

    if model is None and not flags["arch"]:
        raise BadInput("No model was given; needed is a file, or --arch NAME alone, whose weights are then drawn.")
    heard: list[str] = []  # what is said of the model, once, though it is opened twice
    with noting(), told_at_once(lambda line: None if line in heard else heard.append(line)):
        found = cast(Any, api.explain)(model, layer, depth=depth, reach=reach, **given(flags))
        whole = not (layer or depth or as_json)
        rows: Any = found if reach else api.explain(model, reach=True, **given(flags)) if whole else []
    for line in heard:
        say(line, err=True)
    print_json(found) if as_json else print_records(found)
    if whole:
        more = "" if reach else " --reach says what stands in the way."
        told(
            f"Within reach: {rows[0].macs:.1%} of the MACs and {rows[0].params:.1%} of the parameters, in "
            f"{rows[0].channels} groups that can lose channels and be refitted.{more}"
        )
    if depth and found and not as_json:
        told(
            "entropy in bits, where a batch norm tells it without data; merges: layers that would become one; pointwise: those "
            "that would be reduced to 1x1 for it;\nmacs of the one layer, as a share of those that the segment has now"
        )


@command(
    path_argument("model"),
    click.option("--format", "format", default="onnx", show_default=True, help="a format that 'compress doctor' lists"),
    click.option("--out", type=click.Path(path_type=Path), help="file to write  [default: model, with the format's ending]"),
    settings("opset", "calibration", "calibrator", "int8_error", "batch", *LOADING, "data"),
    force_option,
    json_option,
    example="compress export model.pt --input-shape 3x224x224 --format onnx --out model.onnx",
)
def export(model: str, format: str, out: Path | None, force: bool, as_json: bool, **flags: Any) -> None:
    """Write MODEL in a format of another runtime, and compare the two on the same inputs.

    A folder model.compressed knows its input size; any other file needs --input-shape or --data.
    """
    from compress import api
    from compress.cli.output import compared, print_json

    with noting():
        written = api.export(model, format=format, out=out, force=force, **given(flags))
    if as_json:
        print_json(written)
    else:
        say(f"{written.path}: {written.format}, {compared(written)}")


@command(
    path_argument("models", required=False, nargs=-1),
    click.option(
        "--runtime",
        help=f"where: {', '.join(('auto', *RUNTIMES, 'ort-cuda'))}; several with commas  [default: what each file was made for]",
    ),
    click.option("--batch", help="samples per call; several with commas  [default: 1]"),
    click.option("--threads", help="threads inside an operator, several with commas; 0: all cores  [default: 0]"),
    click.option("--cpu", help="cores to pin to, with commas"),
    click.option("--strict", is_flag=True, help="end with exit code 1 where the rounds scatter too much for any claim"),
    *TARGET,
    settings("rounds", *LOADING, "data"),
    telling,
    json_option,
    example="compress bench dense.onnx out/model.onnx --runtime ort,openvino --batch 1,32 --threads 2",
)
def bench(models: tuple[str, ...], strict: bool, quiet: bool, log_format: LogFormat, as_json: bool, **flags: Any) -> None:
    """Time MODELS against each other, interleaved; the first one is what the others are compared with.

    Each runs in a process of its own, in every runtime that is named and opens it: ONNX files, OpenVINO's .xml, ExecuTorch's
    .pte, LiteRT's .tflite, .pt2, .torchscript, and torch models, which are exported first; a package.tar.gz stands for the ONNX
    models in it. The comparison is among equal batch sizes and threads. --target ssh://... copies ONNX files to another machine,
    times them there and removes them again.

    The input size is that of an ONNX file or folder model.compressed among them; else --input-shape says it.
    """
    from compress import api
    from compress.cli.output import print_json, print_timings
    from compress.commands.bench import steady

    with noting(quiet, log_format), shown(quiet, log_format) as progress:
        timings = api.bench(*models, progress=progress, **given(flags))
    print_json(timings) if as_json else print_timings(timings)
    if strict:
        steady(timings.values())


@command(
    path_argument("run"),
    out_option("package.tar.gz", "the archive"),
    click.option("--samples", help="inputs that travel along, a .npz with input_0, ...; else the first of the run's test data"),
    click.option("--name", default="model", show_default=True, help="of the model, for manifest and bill of materials"),
    click.option("--license", default="NOASSERTION", show_default=True, help="of the model, as an SPDX expression"),
    click.option("--sign", help="a private key of OpenSSH that signs the package"),
    click.option("--allow-broken", is_flag=True, help="pack a run that broke its contract, too, and say so in the package"),
    force_option,
    json_option,
    example="compress package out --out package.tar.gz --license MIT",
)
def package(run: str, as_json: bool, **settings: Any) -> None:
    """The models of the folder RUN, and what a device needs to check them, in one archive.

    The same run gives the same bytes. 'compress verify', or the verify.py inside, checks hashes, outputs and time.
    """
    from compress import api
    from compress.cli.output import print_json

    made = api.package(run, **settings)
    if as_json:
        print_json(made)
    else:
        signed = ", signed" if made.signed else ""
        say(f"{made.path}: {many(len(made.models), 'model')}, {made.files} files, {made.bytes:,} bytes{signed}")
        say(f"digest: {made.digest}")
        if made.broken:
            say(f"Warning: the run broke its contract ({made.broken}); README.txt and manifest.json say so.")
        for warning in made.warnings:
            say(f"Warning: {warning}")


@command(json_option, example="compress doctor")
def doctor(as_json: bool) -> None:
    """Versions, devices, and which exporters work here or what to install for them."""
    from compress import api
    from compress.cli.output import print_json, print_records

    found = api.doctor()
    print_json(found) if as_json else print_records(found)


complete_from(cli)


def main() -> None:
    """Entry point of the whole command line; `compress.__main__` is that of the script."""
    cli(prog_name="compress")
