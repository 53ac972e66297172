"""The table of `compress analyze`: eight columns and a legend; every column with `--all`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from compress.cli.output import print_records
from compress.cli.tables import cell, print_table, told
from compress.report import sentences

COLUMNS: dict[str, Callable[[Any], object]] = {
    "layer": lambda row: row.layer,
    "channels": lambda row: row.channels,
    "needed": lambda row: row.needed,
    "entropy": lambda row: None if row.entropy is None else f"{row.entropy:.3f}",
    "saves ms": lambda row: row.linearized_saves_ms,
    "MACs": lambda row: None if row.macs is None else sentences.count(row.macs),
    "half saves": lambda row: None if row.macs_saved is None else f"{row.macs_saved:.1%}",
    "stays because": lambda row: row.frozen or row.stays,
}
LEGEND = {
    "needed": "fewest channels that keep the consumers' error within 1 % of their variance",
    "entropy": "bits per channel of the activation behind the layer; 0: it never switches",
    "saves ms": "of a call, if that activation is linearized and the layers around it become one",
    "half saves": "share of the model's MACs that half of the channels cost",
    "stays because": "why no channel can go, or why the activation stays",
}
SPATIAL = {"spatial": "spatial entropy of the maps", "spatial_constant": "share of the maps that are constant"}


def print_analysis(rows: Sequence[Any], every: bool) -> None:
    """One row for each group of channels, then the activations that belong to none."""
    if every or not rows:
        print_records(rows)
        return
    asked = [name for name in SPATIAL if any(getattr(row, name) is not None for row in rows)]
    shown = {**COLUMNS, **{name.replace("_", " "): lambda row, name=name: getattr(row, name) for name in asked}}
    # A column that nothing fills, such as times with --no-time, says nothing.
    filled = {name: of for name, of in shown.items() if any(cell(of(row)) for row in rows)}
    print_table(list(filled), ([of(row) for of in filled.values()] for row in rows))
    told("")
    for name, meaning in {**LEGEND, **{name.replace("_", " "): SPATIAL[name] for name in asked}}.items():
        if name in filled:
            told(f"{name}: {meaning}")
    told(f"--all shows all {len(dataclasses.fields(rows[0]))} columns, --json gives them to a program.")
