"""`compress push`: a folder that the hub reads, and nothing that leaves the machine unless a repository is named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from runs import edited, made_run

import compress
from compress.cli.main import cli
from compress.errors import BadInput, MissingPackage


def invoke(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return made_run(tmp_path / "run")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """The client of the hub, which keeps what it was asked for."""
    asked: list[tuple[str, Any]] = []

    class Api:
        def create_repo(self, name: str, **how: Any) -> None:
            asked.append(("create", (name, how["private"])))
            if name == "me/forbidden":
                raise PermissionError("403 Client Error:\n you may not")

        def upload_folder(self, **how: Any) -> str:
            asked.append(
                ("upload", sorted(p.relative_to(how["folder_path"]).as_posix() for p in Path(how["folder_path"]).rglob("*.*")))
            )
            return f"https://hub/{how['repo_id']}/commit/1"

    module = ModuleType("huggingface_hub")
    module.__spec__ = ModuleSpec("huggingface_hub", None)
    module.HfApi = Api  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return asked


def facts(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_without_a_repository_the_folder_is_made_and_nothing_is_sent(run: Path, tmp_path: Path, hub: list[Any]):
    out = tmp_path / "hub"
    done = invoke("push", run, "--out", out, "--license", "mit", "--name", "tiny")
    assert done.exit_code == 0 and "Nothing was sent" in done.stdout and hub == [], done.output
    there = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    stored = {f"model.compressed/{p.name}" for p in (run / "model.compressed").iterdir()}
    assert there == {"README.md", "model.onnx", "report.json", "plan.json", *stored} and "model.compressed/graph.json" in stored
    assert (out / "model.onnx").read_bytes() == (run / "model.onnx").read_bytes()
    card = (out / "README.md").read_text()
    known = facts(card)
    assert known["license"] == "mit" and known["pipeline_tag"] == "image-classification" and known["library_name"] == "onnx"
    assert known["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.5
    assert "\n# tiny\n" in card and "50.00 %" in card and "| dense |" in card and "WARNING" not in card.upper()
    assert str(run) not in card and str(tmp_path) not in "".join(
        p.read_text(errors="ignore") for p in out.rglob("*.*") if p.is_file()
    )


def test_the_python_of_the_card_runs_in_the_folder(run: Path, tmp_path: Path):
    made = compress.push(run, out=tmp_path / "hub")
    for code in re.findall(r"```python\n(.*?)```", (made.folder / "README.md").read_text(), re.DOTALL):
        done = subprocess.run([sys.executable, "-c", code], cwd=made.folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_a_named_repository_gets_the_folder_and_is_private(run: Path, tmp_path: Path, hub: list[Any]):
    done = invoke("push", run, "me/tiny", "--out", tmp_path / "hub", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["url"] == "https://hub/me/tiny/commit/1", done.output
    assert hub[0] == ("create", ("me/tiny", True)) and "README.md" in hub[1][1] and "recipe.toml" not in hub[1][1]
    compress.push(run, "me/tiny", out=tmp_path / "hub", public=True, force=True)
    assert hub[2] == ("create", ("me/tiny", False))


def test_a_hub_that_refuses_is_one_sentence_and_the_folder_stays(run: Path, tmp_path: Path, hub: list[Any]):
    done = invoke("push", run, "me/forbidden", "--out", tmp_path / "hub")
    assert done.exit_code == 2 and "403 Client Error: you may not" in done.stderr and "hf auth login" in done.stderr
    assert (tmp_path / "hub" / "README.md").exists() and len(hub) == 1


def test_what_cannot_be_pushed_is_refused_and_nothing_is_written(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "hub"
    with pytest.raises(BadInput, match="needed is OWNER/NAME"):
        compress.push(run, "tiny", out=out)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # type: ignore[arg-type]
    with pytest.raises(MissingPackage, match=r"entropress\[hub\]"):
        compress.push(run, "me/tiny", out=out)
    (run / "report.json").write_text(edited((run / "report.json").read_text(), '"outcome": "kept"', '"outcome": "quality lost"'))
    done = invoke("push", run, "--out", out)
    assert done.exit_code == 5 and "is not pushed" in done.stderr and not out.exists()
    assert (
        "**Warning:** this model broke the contract"
        in (compress.push(run, out=out, allow_broken=True).folder / "README.md").read_text()
    )
    (run / "model.onnx").write_bytes(b"other")
    with pytest.raises(BadInput, match="not the file that the report measured"):
        compress.push(run, out=tmp_path / "two", allow_broken=True)
    assert not (tmp_path / "two").exists()


def test_a_folder_of_other_things_is_never_replaced(run: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(BadInput, match="exists already"):
        compress.push(run, out=tmp_path / "mine")
    with pytest.raises(BadInput, match="holds files that are not of such"):
        compress.push(run, out=tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()


@pytest.mark.parametrize("own", ["README.md", "model.compressed/thesis.txt", "model.onnx"])
def test_a_folder_with_names_alone_of_a_repository_is_somebody_s_own(own: str, run: Path, tmp_path: Path):
    place = tmp_path / "mine" / own
    place.parent.mkdir(parents=True)
    place.write_text("mine")
    with pytest.raises(BadInput, match="holds files that are not of such"):
        compress.push(run, out=tmp_path / "mine", force=True)
    assert place.read_text() == "mine"
    made = compress.push(run, out=tmp_path / "hub").folder
    compress.push(run, out=made, force=True)  # what was made here is replaced
    (made / "model.compressed" / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match="holds files that are not of such"):
        compress.push(run, out=made, force=True)


def test_a_link_that_leads_nowhere_is_not_replaced_unasked(run: Path, tmp_path: Path):
    (tmp_path / "hub").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="exists already"):
        compress.push(run, out=tmp_path / "hub")
    assert (tmp_path / "hub").is_symlink()


@pytest.mark.parametrize("name", ["a\n---\nevil: 1", '"]}', "<script>alert(1)</script>", "\u202e|"])
def test_a_hostile_name_leaves_neither_the_facts_nor_the_text(run: Path, tmp_path: Path, name: str):
    card = (compress.push(run, out=tmp_path / "hub", name=name).folder / "README.md").read_text()
    head = card.split("\n---\n")[0].removeprefix("---\n")
    assert (
        set(yaml.safe_load(head)) == {"tags", "library_name", "pipeline_tag", "model-index"}
        and "<script" not in card.split("\n---\n", 1)[1]
    )


def test_a_push_needs_no_torch(run: Path, tmp_path: Path):
    code = f"import sys; sys.modules['torch'] = None; import compress; compress.push({str(run)!r}, out={str(tmp_path / 'hub')!r})"
    subprocess.run([sys.executable, "-c", code], check=True)
