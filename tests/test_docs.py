"""The docs cannot rot: what they say of commands, settings, methods, formats, errors, numbers and files is true and complete."""

from __future__ import annotations

import ast
import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from pages import PAGES, README, ROOT, blocks, name, prose

import compress
import exporters
from compress import errors
from compress.cli.main import cli
from compress.data.settings import AugmentSettings, Settings, SplitSettings
from compress.method_table import METHODS
from compress.recipe import RENAMED, Recipe, from_toml, make
from compress.report.records import SCHEMA
from exporters.standalone import engine

TEXT = README.read_text()
ROOT_PAGES = sorted(ROOT.glob("*.md"))
HAND_WRITTEN = [page for page in PAGES if page != README]


def script(name: str) -> ModuleType:
    """A script of benchmarks/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # data classes look their module up
    spec.loader.exec_module(module)
    return module


def tables() -> ModuleType:
    return script("tables")


# Numbers, tables and the picture


def test_what_is_said_of_the_papers_follows_from_the_results(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    papers = script("papers")
    written = json.loads((ROOT / "benchmarks" / "results" / "papers.json").read_text())["rows"]
    assert [papers.told(claim) for claim in papers.CLAIMS] == written, "run benchmarks/papers.py"
    assert all((ROOT / "benchmarks" / row["script"]).is_file() or row["verdict"] == "not run" for row in written)
    assert {row["verdict"] for row in written} == {"reached", "missed", "not run"}


def committed(folder: str) -> set[str]:
    """Names of the files in a folder, as far as git knows them: what lies there alone is lost with the machine."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no checkout of git")
    found = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return {Path(line).name for line in found.splitlines()}


def without_script(results: set[str], scripts: set[str]) -> set[str]:
    """Results that no script makes: one makes NAME.json, and NAME_more.json."""
    stems = {Path(one).stem for one in scripts}
    return {one for one in results if not any(f"{Path(one).stem}_".startswith(f"{stem}_") for stem in stems)}


def test_every_result_and_every_script_that_is_spoken_of_has_its_script_in_git():
    scripts = {one for one in committed("benchmarks") if one.endswith(".py")}
    named = set(re.findall(r"\b\w+\.py\b", (ROOT / "benchmarks" / "README.md").read_text()))
    assert {one for one in named - scripts if not (ROOT / "tests" / one).exists()} == set()
    results = committed("benchmarks/results")
    assert without_script(results, scripts) == set()
    assert without_script(results, scripts - {"tune_front.py"}) == {"tune_front.json"}


@pytest.mark.parametrize("path", tables().documents(), ids=lambda p: str(p.relative_to(ROOT)))
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


def test_a_number_of_the_code_comes_from_the_code():
    stale = "<!-- constant: compress.report.records:SCHEMA; d -->99<!-- end -->"
    assert tables().current(stale) == stale.replace("99", str(SCHEMA))


def test_a_marker_without_a_result_fails(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        tables().current("<!-- result: none.json:x; .2f -->1<!-- end -->", tmp_path)


def test_the_picture_of_the_readme_is_that_of_the_results():
    picture = script("front_picture")
    assert picture.PICTURE.read_text() == picture.drawn(), "run 'make docs'"
    assert f"({picture.PICTURE.relative_to(ROOT)})" in TEXT


def test_the_picture_changes_with_the_results(tmp_path: Path):
    picture = script("front_picture")
    for path in ("vgg16_deployed.json", "resnet20.json"):
        (tmp_path / path).write_bytes((picture.RESULTS / path).read_bytes())
    found = json.loads((tmp_path / "vgg16_deployed.json").read_text())
    found["top1"]["smaller_int8"] -= 0.001
    (tmp_path / "vgg16_deployed.json").write_text(json.dumps(found))
    assert picture.drawn(tmp_path) != picture.drawn()


# The README


def test_the_readme_is_one_screen():
    assert len(README.read_bytes()) <= 8000


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_is_in_the_readme(command: str):
    sentence = TEXT[TEXT.index("\nCommands: ") :].split("\n\n")[0]
    assert f"`{command}`" in sentence


def test_the_python_of_the_readme_shows_where_a_normalization_goes():
    (code,) = (block.text for block in blocks(README) if block.language == "python")
    assert "Normalize(" in code and "as_trained" in code


def test_the_ci_script_runs_what_the_readme_names():
    steps = [
        line
        for line in (ROOT / ".ci" / "run").read_text().splitlines()
        if line and not line.startswith(("#", "set", "cd", "export"))
    ]
    assert steps and [step for step in steps if not (step.startswith("make ") and f"`{step}`" in TEXT)] == []


@pytest.mark.parametrize("page", ROOT_PAGES, ids=lambda p: p.name)
def test_files_that_a_page_names_exist(page: Path):
    text = page.read_text()
    links = [t for t in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text) if "://" not in t]
    assert [t for t in (*links, *named_files(text)) if not (ROOT / t).exists()] == []


def test_places_of_the_architecture_exist_and_are_complete():
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", text[text.index("| place in") :], re.MULTILINE)
    named = {place.rstrip("/") for row in rows for place in re.findall(r"`([\w/]+)`", row)}
    there = {path.stem for path in (ROOT / "compress").iterdir() if not path.name.startswith(("_", "py.typed"))}
    assert named == there


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=name)
def test_files_that_a_page_of_the_site_names_exist(page: Path):
    assert [t for t in named_files(page.read_text()) if not (ROOT / t).exists()] == []


def test_questions_of_a_newcomer_are_answered_with_files_that_exist():
    text = (ROOT / "docs/extending.md").read_text()
    rows = text[text.index("## Where do I find ...?") :].splitlines()[4:]
    assert len(rows) >= 10
    for row in rows:
        _, question, answer, _ = row.split("|")
        assert question.strip().endswith("?") and named_files(answer), row
        assert [place for place in named_files(answer) if not (ROOT / place).exists()] == [], row


def named_files(text: str) -> list[str]:
    return re.findall(r"`((?:tests|benchmarks|examples|compress|exporters|\.ci)/[\w./-]+)(?:::\w+)?`", text)


@pytest.mark.parametrize("page", [*ROOT_PAGES, *HAND_WRITTEN], ids=lambda p: name(p))
def test_make_targets_that_a_page_names_exist(page: Path):
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"(?:`|\$ )make ([a-z]+)", page.read_text())
    assert [t for t in targets if f"\n{t}:" not in makefile] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_flags_that_a_page_names_exist(page: Path):
    known = {option for command in cli.commands.values() for p in command.params for option in (*p.opts, *p.secondary_opts)}
    if name(page) != "reference/settings":  # where the old names are told; every other page shows the new ones
        known -= {f"--{old}" for old in RENAMED}
    known |= set(re.findall(r'add_argument\("(--[a-z-]+)"', Path(engine.__file__ or "").read_text()))
    # of pip, of click, of `cli.help_pages`, of docker, and of torchrun and Slurm
    known |= {"--index-url", "--version", "--help", "--help-all", "--rm", "--gpus", "--network"}
    known |= {"--nnodes", "--nproc-per-node", "--rdzv-id", "--rdzv-backend", "--rdzv-endpoint"}
    known |= {"--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task", "--time"}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", page.read_text())) - known == set()


# The site


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with every warning an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


def shown(site: Path, page: str) -> str:
    """The text of a built page, its menus left out."""
    text = (site / page / "index.html").read_text()
    return html.unescape(re.sub(r"<[^>]+>", "", text[text.index("<article") : text.index("</article")]))


def test_every_page_is_built_and_those_from_elsewhere_are_there(site: Path):
    for page in (*map(name, HAND_WRITTEN), "results", "architecture", "changelog"):
        place = re.sub(r"(^|/)index$", "", page)
        assert (site / place / "index.html").exists(), page
    assert (site / "images/quality.svg").exists() and "results/" in (site / "results/index.html").read_text()


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_and_flag_is_in_the_reference(site: Path, command: str):
    text = shown(site, "reference/cli")
    start = text.index(f"Usage:\ncompress {command} ")
    section = text[start : text.find("Usage:\ncompress ", start + 1)]
    shown_ones = [one for one in cli.commands[command].params if not getattr(one, "hidden", False)]
    flags = [option for parameter in shown_ones for option in parameter.opts if option.startswith("--")]
    assert [flag for flag in flags if not re.search(rf"(?<![\w-]){flag}\b", section)] == []
    assert "Sentinel" not in section


@pytest.mark.parametrize("function", sorted(compress.__all__))
def test_every_function_is_in_the_reference(site: Path, function: str):
    assert re.search(rf"\bcompress\.{function}\n", shown(site, "reference/python"))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_method_is_in_the_table(site: Path, method: str):
    assert f"\n{method}\n" in shown(site, "methods")


@pytest.mark.parametrize("format", sorted(exporters.EXPORTERS))
def test_every_export_format_is_in_the_table(site: Path, format: str):
    assert f"\n{format}\n" in shown(site, "reference/formats")


@pytest.mark.parametrize("setting", sorted(Recipe.model_fields))
def test_every_setting_is_in_the_table_and_says_what_it_means(site: Path, setting: str):
    assert f"\n{setting}\n" in shown(site, "reference/settings")
    assert Recipe.model_fields[setting].description


@pytest.mark.parametrize(("old", "new"), sorted(RENAMED.items()))
def test_old_names_of_settings_are_told_beside_the_new_ones(old: str, new: str):
    assert f"`--{old}` (now `--{new}`)" in (ROOT / "docs/reference/settings.md").read_text()


@pytest.mark.parametrize("key", sorted({*Settings.model_fields, *AugmentSettings.model_fields, *SplitSettings.model_fields}))
def test_every_key_of_a_data_file_is_documented(key: str):
    text = (ROOT / "docs/reference/data.md").read_text()
    assert f"`{key}`" in text or f"`[{key}]`" in text


def error_classes() -> list[str]:
    """Every class in the packages that a program can meet: the roots of both trees, and what descends from them."""
    found: dict[str, list[str]] = {}
    for path in [*(ROOT / "compress").rglob("*.py"), *(ROOT / "exporters").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                found[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
    errors = {"CompressError", "ExportError", "Interrupted"}
    while more := {one for one, bases in found.items() if errors & set(bases)} - errors:
        errors |= more
    return sorted(errors)


@pytest.mark.parametrize("error", error_classes())
def test_every_error_is_in_the_table(site: Path, error: str):
    assert re.search(rf"\n(?:compress|exporters)[\w.]*\.{error}\n", shown(site, "reference/errors"))


def test_every_warning_of_ours_is_on_the_page_of_errors():
    text = (ROOT / "docs/reference/errors.md").read_text()
    ours = [name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, Warning)]
    assert ours and [name for name in ours if f"`compress.errors.{name}`" not in text] == []


def exit_codes() -> list[int]:
    rows = tables().errors_table().splitlines()[2:]
    return sorted({0, *(int(row.split("|")[2]) for row in rows)})


def test_there_are_as_many_exit_codes_as_the_help_names():
    from compress.cli.guard import EXIT_CODES

    assert [int(code) for code in re.findall(r"\d+", EXIT_CODES)] == exit_codes()


@pytest.mark.parametrize("code", exit_codes())
def test_every_exit_code_is_explained(code: int):
    assert f"\n| {code} | " in (ROOT / "docs/reference/errors.md").read_text()


def test_the_tests_that_prove_the_guarantees_exist():
    named = re.findall(r"`(tests/\w+\.py)::(\w+)`", (ROOT / "docs/guarantees.md").read_text())
    assert len(named) > 8
    assert [(file, test) for file, test in named if f"\ndef {test}(" not in (ROOT / file).read_text()] == []


OLD_WORDS = (
    r"behaviour|colour|neighbour|labell|favour|\b[Cc]entre|[Gg]rey|licence|analyse|\btowards\b|"
    r"(normal|serial|optim|summar|initial|quant|general|organ|recogn|minim|maxim|real)is(e|ing|ation)",
    r"[Rr]ectifier(?!s\.svg)|\b[Ss]tretch(es)?\b|\bby and by\b|hangs? together|goes without saying|wins? a race|\bthe front\b|"
    r"\b[Aa]rms?\b|\b[Rr]ace[sd]?\b|\b[Ss]trangers?\b|becomes? (a )?lines?\b|\bin the place of\b",
)
BESIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "examples/ci/README.md")
WRITTEN = [*PAGES, *(ROOT / page for page in BESIDE)]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.parametrize("words", OLD_WORDS, ids=("spelling", "terms"))
def test_pages_use_the_words_of_the_field(page: Path, words: str):
    assert [found[0] for found in re.finditer(words, prose(page))] == []


# Files that a reader takes away


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
