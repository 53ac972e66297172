"""Findings that are curves: what a stage hands on to be drawn. Plain data, like a note."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from inspect import cleandoc

from pydantic import ConfigDict, TypeAdapter


@dataclass(frozen=True)
class Series:
    """One line of a picture: as many x as y, all finite."""

    __pydantic_config__ = ConfigDict(extra="forbid", json_schema_extra={"description": cleandoc(__doc__ or "")})

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or not all(map(math.isfinite, self.x + self.y)):
            raise ValueError(f"{self.name} has {len(self.x)} x and {len(self.y)} y; needed are as many of both, all finite")


@dataclass(frozen=True)
class Curve:
    """One picture.

    Attributes:
        title: what it shows; distinct among the curves of a run.
        x, y: what the axes are, with their units.
        series: lines through points.
        levels: named horizontal lines, such as the quality of the dense model.
        marks: named vertical lines.
        log_x: whether equal steps along x are equal ratios.
        note: a sentence for who reads the picture.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", json_schema_extra={"description": cleandoc(__doc__ or "")})

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    levels: Mapping[str, float] = field(default_factory=dict[str, float])
    marks: Mapping[str, float] = field(default_factory=dict[str, float])
    note: str = ""
    log_x: bool = False


CURVES = TypeAdapter(tuple[Curve, ...])
"""Several curves to JSON and back."""
