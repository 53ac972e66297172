"""The curves of a report as pictures, drawn by matplotlib. That is an extra: without it the figures stand in report.json only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from compress.curves import Curve
from compress.errors import extra
from compress.report.escape import printable
from compress.report.records import Report
from exporters import atomic

MISSING = f"The curves of this run are in report.json, not drawn: that needs matplotlib, {extra('pictures')}."


def draw(report: Report, folder: Path) -> Report:
    """Write a picture of each curve into the folder; the report names the files, or says why there are none."""
    if not report.curves:
        return report
    if _matplotlib() is None:
        return report.model_copy(update={"notes": (*report.notes, MISSING)})
    folder.mkdir(exist_ok=True)
    for curve in report.curves:
        picture(curve, folder / file_name(curve))
    return report.model_copy(update={"pictures": tuple(map(file_name, report.curves))})


def file_name(curve: Curve) -> str:
    """`Accuracy against sparsity` -> "accuracy-against-sparsity.svg"."""
    return re.sub(r"[^a-z0-9]+", "-", curve.title.lower()).strip("-") + ".svg"


FRONT = "Pareto front"
"""The series that joins points of others."""
Span = tuple[tuple[float, ...], tuple[float, ...]]
"""95 % intervals of a point along x and along y; () where there is none."""


def picture(curve: Curve, path: Path, spans: Mapping[str, Span] | None = None) -> bool:
    """One picture: the same figures give the same bytes. False where nothing can draw it. `spans`: by the name of a series."""
    found = _matplotlib()
    if found is None:
        return False
    mpl, figure_of = found
    # Neither the settings of the folder and of the user, who would get other bytes, nor the window of their notebook.
    own = {**mpl.rcParamsDefault, "svg.hashsalt": "compress"}
    with mpl.rc_context({name: value for name, value in own.items() if not name.startswith("backend")}):
        figure = figure_of(figsize=(7, 4.5))
        _drawn(figure.subplots(), curve, spans or {})
        content = BytesIO()
        figure.savefig(content, format="svg", bbox_inches="tight", metadata={"Date": None})
    atomic.write(path, content.getvalue())  # whole, and never through a link
    return True


def _drawn(axes: Any, curve: Curve, spans: Mapping[str, Span]) -> None:
    for series in curve.series:
        # Points that are no curve have their name beside them; a line through those of others goes behind and has no points.
        alone, behind = len(series.x) == 1, series.name == FRONT
        how = {"linestyle": "--", "color": "gray", "zorder": 1, "linewidth": 1} if behind else {"marker": "o", "markersize": 3}
        axes.plot(series.x, series.y, label=_label(series.name), **({**how, "markersize": 6} if alone else how))
        if alone:
            low, high = spans.get(series.name, ((), ()))
            axes.annotate(_label(series.name), (series.x[0], series.y[0]), xytext=(6, 6), textcoords="offset points", fontsize=8)
            for interval, axis in ((low, "x"), (high, "y")):
                if interval:
                    at = series.x[0] if axis == "x" else series.y[0]
                    ends = {f"{axis}err": [[max(at - min(interval), 0)], [max(max(interval) - at, 0)]]}
                    axes.errorbar(series.x, series.y, **ends, color="gray", linewidth=1, capsize=3, zorder=0)
    for number, (name, y) in enumerate(curve.levels.items()):
        axes.axhline(y, color="gray", linestyle=_STYLES[number % len(_STYLES)], label=_label(name))
    for number, (name, x) in enumerate(curve.marks.items()):
        axes.axvline(x, color="black", linestyle=_STYLES[number % len(_STYLES)], linewidth=0.8, label=_label(name))
    if curve.log_x:
        axes.set_xscale("log")
    axes.set(title=_label(curve.title), xlabel=_label(curve.x), ylabel=_label(curve.y))
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def _label(text: str) -> str:
    # Between two dollars matplotlib reads mathematics, and a leading underscore hides a label from the legend.
    return printable(text).replace("$", r"\$").removeprefix("_")


_STYLES = (":", "--", "-.")


def _matplotlib() -> Any:
    """The package and its figures; None where it is not installed."""
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return mpl, Figure
