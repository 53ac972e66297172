"""Names and sentences out of somebody else's report or plan: shown in full, and obeyed by no terminal, page or table."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from compress.cli.main import cli
from compress.report.escape import markdown, printable
from tests.attacks.names import TEXTS
from tests.runs import edited
from tests.test_gate import changed, quality, report, stage

TEXT = "<script>alert(1)</script> a|b](javascript:x) \x1b]0;title\x07 \u202e $\\frac{ $"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def harmless(shown: str) -> None:
    assert not any(c in shown for c in "\x1b\x07\u202e"), "a terminal would obey this"


def hostile_report() -> str:
    made = report(changed(stage("x", 0.25, None, quality(0.927, (0.1, 0.45))), stage=TEXT), method=TEXT, verdict=TEXT)
    return made.model_copy(update={"notes": (TEXT,), "warnings": (TEXT,)}).to_json()


@pytest.mark.parametrize("text", [*(t for t in TEXTS if len(t) < 1000), TEXT])
def test_escaped_text_is_harmless_and_can_be_written(text: str):
    shown = markdown(text)
    assert printable(shown) == shown and "\n" not in shown
    shown.encode()
    assert "<script" not in shown and "](" not in shown


def test_ordinary_text_stays_as_it_is():
    assert printable("größer: 2 µs → 3\nlines") == "größer: 2 µs → 3\nlines"
    # A path as Python has it where the locale is ASCII: bytes that are UTF-8, and one that is none.
    assert printable(os.fsencode("größer").decode("ascii", "surrogateescape")) == "größer"
    assert printable("a\udcff") == "a\\xff"
    assert markdown("block.0/conv (3x3)") == "block.0/conv (3x3)"


def test_reports_beside_each_other(here: Path):
    for name in ("a", "b"):
        (here / name).mkdir()
        (here / name / "report.json").write_text(hostile_report())
    result = invoke("compare", "a", "b", "--out", "both")
    assert result.exit_code == 0, result.output
    harmless(result.output)
    page = (here / "both/compare.md").read_text()
    harmless(page)
    assert "<script" not in page and "](javascript" not in page


def test_a_gate_shows_names_and_obeys_none(here: Path):
    Path("report.json").write_text(hostile_report())
    result = invoke("gate", "report.json", "--max-drop", "1", "--junit", "j.xml", "--markdown", "m.md")
    assert result.exit_code in (0, 5), result.output
    for shown in (result.output, Path("j.xml").read_text(), Path("m.md").read_text()):
        harmless(shown)
        assert "<script" not in shown or shown == result.output


def test_a_difference_of_plans_shows_names_and_obeys_none(here: Path):
    for number, name in enumerate(("a.json", "b.json")):
        edits = [{"edit": "keep", "layer": TEXT, "channels": 8, "keep": list(range(4 + number))}]
        Path(name).write_text(json.dumps({"format": "compress.plan", "schema": 1, "edits": edits}))
    result = invoke("diff", "a.json", "b.json")
    harmless(result.output)
    assert "Traceback" not in result.output


@pytest.mark.parametrize("value", [5.0, -0.1, 1.0000001])
def test_a_share_beyond_the_whole_is_refused(here: Path, value: float):
    Path("report.json").write_text(edited(report().to_json(), "0.927", str(value)))
    result = invoke("gate", "report.json", "--max-drop", "1")
    assert result.exit_code == 2 and "top1" in result.stderr and "cannot be" in result.stderr


@pytest.mark.parametrize(
    "command", [("gate", "pipe"), ("compare", "pipe", "pipe"), ("diff", "pipe", "pipe"), ("run", "--recipe", "pipe")]
)
def test_a_pipe_is_not_waited_for(here: Path, command: tuple[str, ...]):
    os.mkfifo("pipe")
    result = invoke(*command)
    assert result.exit_code == 2 and "Traceback" not in result.output
