"""The stages of a run as a picture in Mermaid, which the summary of a job shows: GitHub and GitLab draw it, and load nothing.

    percent of the dense model, stage by stage:   bars MACs,   lines time of a call (100 / speed-up) and quality

Summaries show neither files of the job nor pictures that stand in the text; Mermaid is what is left.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from compress.report.records import Report, StageRecord

MOST = 12
"""Stages whose names stand beside each other without covering each other; of more, the last are shown."""
COLORS = {"gray bars": "#9aa5b1", "the blue line": "#1f77b4", "the orange line": "#e6550d"}


def stages_picture(report: Report) -> str:
    """Markdown; empty where there is nothing to compare."""
    stages = [report.dense, *report.stages[1:][-(MOST - 1) :]]
    if len(stages) < 2 or not report.dense.macs:
        return ""
    plotted: list[tuple[str, str, list[float]]] = [("bar", "MACs", [100 * one.macs / report.dense.macs for one in stages])]
    if all(one.latency is not None for one in stages):
        plotted.append(("line", "the time of a call", [100 / one.latency.ratio if one.latency else 0.0 for one in stages]))
    if (quality := _quality(stages)) is not None:
        plotted.append(("line", quality[0], quality[1]))
    top = max(value for _, _, values in plotted for value in values)
    colors = list(COLORS) if len(plotted) > 2 else ["gray bars", "the line"]
    told = ", ".join(f"{color}: {what}" for color, (_, what, _) in zip(colors, plotted, strict=False))
    lines = [
        "```mermaid",
        f'%%{{init: {{"themeVariables": {{"xyChart": {{"plotColorPalette": "{", ".join(COLORS.values())}"}}}}}}}}%%',
        "xychart-beta",
        f"    x-axis [{', '.join(_names(stages))}]",
        f'    y-axis "% of the dense model" 0 --> {max(100, round(top + 5))}',
        *(f"    {kind} [{', '.join(f'{value:.1f}' for value in values)}]" for kind, _, values in plotted),
        "```",
    ]
    return "\n".join(lines) + f"\n\nIn percent of the dense model after each stage; {told}.\n"


def _quality(stages: Sequence[StageRecord]) -> tuple[str, list[float]] | None:
    """What it is called, and its shares; an error that grows has none that would look like a loss."""
    values = [one.quality for one in stages if one.quality is not None]
    same = len(values) == len(stages) and len({one.metric for one in values}) == 1
    if not same or not values[0].higher_is_better or values[0].value <= 0:
        return None
    return _word(values[0].metric), [100 * max(0.0, one.value) / values[0].value for one in values]


def _names(stages: Sequence[StageRecord]) -> list[str]:
    """In quotation marks, and different from each other, or a stage would lie on another."""
    names: list[str] = []
    for one in stages:
        name = word = _word(one.stage)
        while f'"{name}"' in names:
            name = f"{word} {sum(n.startswith(chr(34) + word) for n in names) + 1}"
        names.append(f'"{name}"')
    return names


def _word(text: str) -> str:
    """Letters and figures alone: names in a report may be a stranger's, and Mermaid has a syntax."""
    return re.sub(r"[^A-Za-z0-9_. -]", "", text)[:24].strip() or "stage"
