"""The curves of a report as pictures, drawn by matplotlib. That is an extra: without it the figures stand in report.json only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from compress.curves import Curve
from compress.errors import extra
from compress.report.escape import printable
from compress.report.records import Report

MISSING = f"The curves of this run are in report.json, not drawn: that needs matplotlib, {extra('pictures')}."


def draw(report: Report, folder: Path) -> Report:
    """Write a picture of each curve into the folder; the report names the files, or says why there are none."""
    if not report.curves:
        return report
    if _pyplot() is None:
        return report.model_copy(update={"notes": (*report.notes, MISSING)})
    folder.mkdir(exist_ok=True)
    for curve in report.curves:
        picture(curve, folder / file_name(curve))
    return report.model_copy(update={"pictures": tuple(map(file_name, report.curves))})


def file_name(curve: Curve) -> str:
    """`Accuracy against sparsity` -> "accuracy-against-sparsity.svg"."""
    return re.sub(r"[^a-z0-9]+", "-", curve.title.lower()).strip("-") + ".svg"


def picture(curve: Curve, path: Path) -> bool:
    """One picture: the same figures give the same bytes. False where nothing can draw it."""
    pyplot = _pyplot()
    if pyplot is None:
        return False
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for series in curve.series:
        axes.plot(series.x, series.y, marker="o", markersize=3, label=_label(series.name))
    for number, (name, y) in enumerate(curve.levels.items()):
        axes.axhline(y, color="gray", linestyle=_STYLES[number % len(_STYLES)], label=_label(name))
    for number, (name, x) in enumerate(curve.marks.items()):
        axes.axvline(x, color="black", linestyle=_STYLES[number % len(_STYLES)], linewidth=0.8, label=_label(name))
    if curve.log_x:
        axes.set_xscale("log")
    axes.set(title=_label(curve.title), xlabel=_label(curve.x), ylabel=_label(curve.y))
    axes.legend()
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)
    return True


def _label(text: str) -> str:
    # Between two dollars matplotlib reads mathematics, and a leading underscore hides a label from the legend.
    return printable(text).replace("$", r"\$").removeprefix("_")


_STYLES = (":", "--", "-.")


def _pyplot() -> Any:
    """Matplotlib without a screen; None where it is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        return None
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "compress"
    from matplotlib import pyplot

    return pyplot
