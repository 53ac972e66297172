"""A plan: what is to be done to a model, as plain data.

A plan is made once (`compress plan`) and can be replayed on any checkpoint of the same architecture (`compress apply`).
It holds decisions only, never weights: `Keep("layer1.0.conv1", 64, (0, 2, 5))` says which of the 64 output channels of that
layer stay. Everything that hangs on those channels (norms, consumers, the other branches of a sum) follows from the graph.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from compress.errors import BadInput

SCHEMA = 1


@dataclass(frozen=True)
class Keep:
    """Channels that stay in one group; `layer` is the name of the group, its first producer."""

    layer: str
    channels: int
    keep: tuple[int, ...]

    def __post_init__(self) -> None:
        ordered = tuple(sorted(set(self.keep)))
        if ordered != self.keep or not self.keep or self.keep[0] < 0 or self.keep[-1] >= self.channels:
            raise BadInput(
                f"The plan keeps channels {list(self.keep)[:8]} of {self.layer}; needed are distinct, ascending numbers "
                f"from 0 to {self.channels - 1}, at least one. Make the plan again with 'compress plan'."
            )


Edit = Keep  # a union of edit kinds as they come


@dataclass(frozen=True)
class Plan:
    """Edits in the order in which they apply. `align` is the multiple that channel counts were rounded to (1: none)."""

    edits: tuple[Edit, ...] = ()
    method: str = ""
    align: int = 1

    def then(self, *edits: Edit) -> Plan:
        """The plan with further edits behind those it has."""
        return Plan(self.edits + edits, self.method, self.align)

    def to_json(self) -> str:
        """Canonical JSON: the same plan gives the same bytes."""
        edits = [{"edit": "keep", "layer": e.layer, "channels": e.channels, "keep": list(e.keep)} for e in self.edits]
        return json.dumps({"schema": SCHEMA, "method": self.method, "align": self.align, "edits": edits}, indent=1) + "\n"

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def from_json(text: str) -> Plan:
    """Read a plan back.

    Raises:
        BadInput: not JSON, another schema, an edit kind that is not known, or an edit that cannot be.
    """
    try:
        data: Any = json.loads(text)
        if not isinstance(data, dict) or cast("dict[str, Any]", data).get("schema") != SCHEMA:
            raise BadInput(f"The plan is not of schema {SCHEMA}. Make it again with 'compress plan'.")
        known = cast("dict[str, Any]", data)
        return Plan(tuple(_edit(e) for e in known["edits"]), str(known.get("method", "")), int(known.get("align", 1)))
    except (ValueError, KeyError, TypeError) as error:
        said = f"{type(error).__name__}: {error}"
        raise BadInput(f"The plan cannot be read ({said}). Make it again with 'compress plan'.") from error


def _edit(data: Mapping[str, Any]) -> Edit:
    if data["edit"] != "keep":
        raise BadInput(
            f"The plan has an edit of kind '{data['edit']}', known is 'keep'. A newer version may have made it: upgrade."
        )
    return Keep(str(data["layer"]), int(data["channels"]), tuple(int(k) for k in data["keep"]))
