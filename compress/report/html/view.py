"""What a page shows, as plain typed data: words and numbers as they stand on it. Templates only put them in their places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from compress.report.html.plots import Plot

Tone = Literal["good", "bad", "unsure", "plain"]
"""How something reads: good news, bad news, what nobody can tell, and what is neither."""


@dataclass(frozen=True)
class Figure:
    """One of the headline figures.

    Attributes:
        name: what is measured.
        value: the result's.
        beside: the same of the dense model, and what that is in between.
        interval: how sure it is.
        tone: how it reads.
        numbers: value, low end and high end as they stand in the report; ends are None where it has none.
    """

    name: str
    value: str
    beside: str
    interval: str
    tone: Tone
    numbers: tuple[float | None, float | None, float | None] = (None, None, None)


@dataclass(frozen=True)
class Verdict:
    """What the run came to, first in a few words, then in sentences."""

    tone: Tone
    headline: str
    sentences: tuple[str, ...]
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Table:
    """A table; cells in the order of the heading. The first column names the row."""

    caption: str
    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Choice:
    """One of several pictures that a reader switches between."""

    key: str
    name: str
    plot: Plot


@dataclass(frozen=True)
class Switched:
    """Pictures of the same stages against different costs, and the numbers of the marks."""

    choices: tuple[Choice, ...]
    legend: tuple[str, ...]
    said: str


@dataclass(frozen=True)
class LayerRow:
    """One layer: cells as text, what happened to it in a word or two, and the reasons behind a click.

    Attributes:
        share: what is left of its width in percent; None where that is not known.
        marks: "removed", "narrower", "linearized", "merged", "frozen", ...
    """

    name: str
    kind: str
    width: str
    share: float | None
    macs: str
    params: str
    entropy: str
    redundancy: str
    milliseconds: str
    marks: tuple[str, ...]
    reasons: tuple[str, ...]

    @property
    def quiet(self) -> bool:
        """Nothing happened to it, and nothing stood in the way."""
        return not self.marks


@dataclass(frozen=True)
class Layers:
    """All layers; a column that nothing is known for is left out, and `missing` says so."""

    rows: tuple[LayerRow, ...]
    columns: tuple[str, ...]
    plots: tuple[Plot, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """A picture with the names of its lines, each with its look (-1: it has none), and a sentence."""

    plot: Plot
    legend: tuple[tuple[str, int], ...]
    note: str = ""


@dataclass(frozen=True)
class Remark:
    """A note, with how much it weighs."""

    weight: Literal["broken", "warning", "missing", "note"]
    text: str


@dataclass(frozen=True)
class RunView:
    """One run, in the order of the page. What is empty is left out, or said to be missing where `missing` has a sentence."""

    key: str
    name: str
    about: tuple[str, ...]
    verdict: Verdict
    stages: Switched | None
    stage_table: Table | None
    layers: Layers | None
    trainings: tuple[Graph, ...]
    curves: tuple[Graph, ...]
    latency: tuple[Graph, ...]
    latency_note: str
    exactness: tuple[Tone, str] | None
    exports: Table | None
    failed_exports: tuple[str, ...]
    remarks: tuple[Remark, ...]
    environment: Table | None
    command: str
    missing: tuple[tuple[str, str], ...]

    def lacks(self, section: str) -> str:
        """Why a section is not there; empty where it is not missed."""
        return dict(self.missing).get(section, "")


@dataclass(frozen=True)
class Beside:
    """Several runs beside each other."""

    table: Table
    graph: Graph | None
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class PageView:
    """The whole page."""

    title: str
    made_by: str
    runs: tuple[RunView, ...]
    beside: Beside | None = None
