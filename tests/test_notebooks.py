"""The notebooks of examples/: small, of code that is checked, and, in the slow tier, executed from top to bottom."""

from __future__ import annotations

import ast
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
LARGEST = 40_000
"""Bytes, outputs included: what is larger is no longer read in a diff."""


def cells(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text())["cells"]


def test_the_notebooks_are_those_that_the_page_names():
    page = (ROOT / "docs" / "how-to" / "notebooks.md").read_text()
    assert len(NOTEBOOKS) == 5 and [path.name for path in NOTEBOOKS if f"`examples/notebooks/{path.name}`" not in page] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_executed_in_order_and_shows_no_error(path: Path):
    code = [cell for cell in cells(path) if cell["cell_type"] == "code"]
    assert path.stat().st_size < LARGEST and cells(path)[0]["source"][0].startswith("# ")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs and not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    for cell in code:
        ast.parse("".join(cell["source"]))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if missing := [name for name in ("nbclient", "nbformat", "ipykernel") if find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed")
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
