"""`compress detector` on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compress.cli.group import command
from compress.cli.guard import force_option, json_option, out_option, path_argument
from compress.cli.live import LogFormat, shown, telling
from compress.cli.options import given, settings
from compress.cli.running import broken_contract
from compress.cli.terminal import say
from compress.user import files

OF_TRAINING = ("epochs", "optimizer", "lr", "weight_decay", "batch_size", "warmup", "clip")


@command(
    path_argument("model"),
    out_option("detector", "folder of the results"),
    settings(
        *("arch", "arch_kwargs", "trust_pickle", "weights_entry", "input_shape", "data", "target", "max_drop", "method"),
        *("calibration", *OF_TRAINING, "export", "rounds", "batch", "threads", "device", "seed"),
    ),
    force_option,
    telling,
    json_option,
    example="compress detector yolo.pt --trust-pickle --data coco --target macs=0.7 --epochs 5",
    data=files.boxes,
)
def detector(model: str, out: Path, force: bool, quiet: bool, log_format: LogFormat, as_json: bool, **flags: Any) -> None:
    """From a whole object detector to a smaller one in its own class, with its mean average precision before and after.

    MODEL is a detector of torchvision, ultralytics or transformers; --data a folder of images and boxes in COCO's format. The
    channels of its layers are removed (--target macs=0.7 unless it is given), what stays is refitted, and the whole is trained
    by its own losses for --epochs. The folder --out has detector.pt, an ONNX file of the part that computes tensors, and a report
    of every stage.
    """
    from compress import api
    from compress.cli.closing import print_stages
    from compress.cli.output import print_json
    from compress.cli.tables import told

    typed = given(flags)
    with broken_contract(out, quiet, as_json), shown(quiet, log_format) as progress:
        found = api.detector(model, typed.pop("data", ""), out=out, force=force, progress=progress, **typed)
    if as_json:
        print_json(found.report)
        return
    if not quiet:
        print_stages(found.report)
        say()
        for line in (*(f"Warning: {one}" for one in found.report.warnings), *(f"Note: {one}" for one in found.report.notes)):
            told(line)
    told(found.report.verdict)
    say(f"{found.out / 'detector.pt'} is written, in its own class; {found.out / 'report.html'} is for a browser.")
