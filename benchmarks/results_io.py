"""Where benchmark results go: one JSON file each, with the environment it was measured in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compress.report.environment import environment

RESULTS = Path(__file__).parent / "results"


def write(name: str, results: dict[str, Any]) -> Path:
    """Write `results/NAME.json`, the environment in front."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": environment().model_dump(), **results}, indent=1) + "\n")
    return path


def known(name: str) -> dict[str, Any]:
    """What `results/NAME.json` has, without its environment; nothing where there is no such file."""
    path = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    found.pop("environment", None)
    return found


def spread(values: list[float]) -> dict[str, Any]:
    """Mean and extremes of a figure over seeds, with the single values."""
    return {"mean": sum(values) / len(values), "min": min(values), "max": max(values), "values": values}
