"""Names that settings take, known without torch, so that a typo is told before anything is opened."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from compress.errors import BadInput
from compress.measure import meant
from exporters.formats import FORMATS

METRICS = ("top1", "top5", "f1", "label_accuracy", "mae", "psnr", "miou", "agreement", "perplexity")
LOSSES = ("cross_entropy", "bce", "mse", "l1")
DEVICES = "auto, cpu, cuda, cuda:N or mps"


def require(settings: Mapping[str, Any]) -> None:
    """Refuse names that there are not; values of other types are the recipe's to refuse.

    Raises:
        BadInput: a metric, a loss, a device or a format has none of the names.
    """
    for key, known in (("metric", METRICS), ("loss", LOSSES)):
        name = settings.get(key)
        if isinstance(name, str) and ":" not in name and name not in ("auto", *known):
            close = difflib.get_close_matches(name.lower(), known, 1)
            like = f" Did you mean {close[0]}?" if close else ""
            raise BadInput(f"The {key} is '{name}'; known are auto, {', '.join(known)} and module:function.{like}")
    device = settings.get("device")
    if isinstance(device, str) and not re.fullmatch(r"auto|cpu(:0)?|mps(:0)?|cuda(:[0-9]+)?", device):
        raise BadInput(f"The device is '{device}'; needed is {DEVICES}.")
    formats = settings.get("export")
    texts = [formats] if isinstance(formats, str) else formats if isinstance(formats, list | tuple) else []
    for name in (name for text in texts if isinstance(text, str) for name in text.split(",")):
        if name and name not in FORMATS:
            raise BadInput(
                f"--export is '{name}'; known are {', '.join(FORMATS)}.{meant.export(name, FORMATS)} See 'compress doctor'."
            )
