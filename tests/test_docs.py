"""The docs cannot rot: what they say of commands, settings, methods, formats, numbers and files is true and complete."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import exporters
from compress.cli.main import cli
from compress.data.settings import Settings
from compress.method_table import METHODS
from compress.recipe import Recipe, from_toml, make

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted(path for path in ROOT.glob("*.md"))


def tables() -> ModuleType:
    """benchmarks/tables.py, which is a script and no package."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", tables().documents(), ids=lambda p: p.name)
def test_marked_numbers_and_tables_are_those_of_the_results(path: Path):
    text = path.read_text()
    assert text == tables().current(text), "run 'make docs'"


def test_a_number_that_was_typed_by_hand_is_found(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps({"rows": [{"method": "x", "macs": 1234}], "drop": {"points": 0.123}}))
    stale = "loses <!-- result: a.json:drop.points; .2f -->0.05<!-- end --> points"
    assert tables().current(stale, tmp_path) == stale.replace("0.05", "0.12")
    table = "<!-- table: a.json:rows; method=Method; macs=MACs=,d -->old<!-- end -->"
    assert "| Method | MACs |\n| --- | --- |\n| x | 1,234 |" in tables().current(table, tmp_path)
    named = "<!-- table: a.json:; name=What; points=Points=.1f -->old<!-- end -->"
    (tmp_path / "a.json").write_text(json.dumps({"half, kept": {"points": 1.23}}))
    assert "| half, kept | 1.2 |" in tables().current(named, tmp_path)


def test_a_marker_without_a_result_fails(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        tables().current("<!-- result: none.json:x; .2f -->1<!-- end -->", tmp_path)


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_is_in_the_readme(command: str):
    assert f"`compress {command}" in README


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_is_in_the_readme(name: str):
    assert f"- `{name}`" in README


@pytest.mark.parametrize("name", sorted(exporters.EXPORTERS))
def test_every_export_format_is_in_the_readme(name: str):
    formats = next(line for line in README.splitlines() if line.startswith("Export formats:"))
    assert f"`{name}`" in formats


@pytest.mark.parametrize("name", sorted(Recipe.model_fields))
def test_every_setting_says_what_it_means_in_the_readme(name: str):
    assert f"| `{name}` |" in README
    assert Recipe.model_fields[name].description


@pytest.mark.parametrize("code", range(6))
def test_every_exit_code_is_in_the_readme(code: int):
    sentence = README[README.index("Exit codes:") :].split("\n\n")[0]
    assert re.search(rf"\b{code} ", sentence)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_a_page_names_exist(page: Path):
    text = page.read_text()
    links = [t for t in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in t]
    named = re.findall(r"`((?:tests|benchmarks|examples|compress|exporters)/[\w./-]+)`", text)
    assert [t for t in (*links, *named) if not (ROOT / t).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_make_targets_that_a_page_names_exist(page: Path):
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"`?\bmake ([a-z]+)`", page.read_text())
    assert [t for t in targets if f"\n{t}:" not in makefile] == []


def test_flags_that_the_readme_names_exist():
    known = {option for command in cli.commands.values() for p in command.params for option in p.opts}
    known |= {option for command in cli.commands.values() for p in command.params for option in p.secondary_opts}
    outside = {"--index-url"} | flags_of_the_engine_script()  # of pip
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", README)) - known - outside == set()


def flags_of_the_engine_script() -> set[str]:
    return set(re.findall(r'add_argument\("(--[a-z-]+)"', (ROOT / "exporters/standalone/engine.py").read_text()))


def test_the_ci_script_runs_the_readmes_test_command():
    steps = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith(("#", "set", "cd"))]
    assert steps == ["make test"] and "`make test`" in README


def test_a_recipe_file_holds_every_setting_and_gives_the_same_recipe(tmp_path: Path):
    recipe = make(model="a.pt", data="digits", target="macs=0.5", arch_kwargs={"width": 8}, input_shape=("1x8x8",))
    (tmp_path / "recipe.toml").write_text(recipe.to_toml())
    assert from_toml(tmp_path / "recipe.toml") == recipe


def test_the_example_of_a_data_file_can_be_read():
    found = Settings(**tomllib.loads((ROOT / "examples" / "data.toml").read_text()))
    assert found.size == (224, 224) and found.augment is not None and found.augment.shift == 16


@pytest.mark.slow
def test_the_example_script_runs(tmp_path: Path):
    command = [sys.executable, str(ROOT / "examples" / "digits.py"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # also where the package is not installed
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "one more step of training" in done.stdout
