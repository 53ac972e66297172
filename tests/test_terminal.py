"""What a terminal shows while a command works and when it is done: of any width, of none, quiet, as JSON; help and completion."""

from __future__ import annotations

import ast
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

import compress
from compress.cli import completion, tables
from compress.cli.help_pages import BRIEF, GROUPS
from compress.cli.live import Now, lines, short
from compress.cli.main import cli
from compress.cli.output import print_differences
from compress.commands import outputs
from compress.commands.diff import Difference
from compress.errors import BadInput, CompressWarning
from compress.progress import Milestone, about, under
from compress.recipe import Recipe
from compress.report import records, weights
from tests.runs import made_run

ROOT = Path(__file__).resolve().parent.parent
WORK = """
import sys, time
from compress.cli.live import shown
from compress.progress import Milestone
try:
    with shown() as tell:
        tell(Milestone("dense", 1, 3), 0.0, "")
        tell(Milestone("remove", 2, 3, 130.0), 0.0, "")
        for share in (0.2, 0.9, 0.5):
            tell("choose channels of every group that is there", share, "layer1.0.conv1, which has a name that goes on and on")
            time.sleep(0.3)
        raise KeyboardInterrupt
except KeyboardInterrupt:
    print("STOPPED", file=sys.stderr)
"""


class Clock:
    """Time that passes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


# ---- progress --------------------------------------------------------------------------------------------------------------


def test_a_milestone_is_its_own_words():
    one = Milestone("remove", 3, 6, 75.0)
    assert one == "stage 3 of 6: remove" and (one.number, one.of, one.left) == (3, 6, 75.0)
    assert under("magnitude", one) == "magnitude: stage 3 of 6: magnitude: remove".replace("magnitude: remove", "remove")
    assert under("magnitude", "refit") == "magnitude: refit"


def test_a_share_never_goes_back_within_a_step():
    now = Now()
    assert now.update("refit", 0.6, "") and not now.update("refit", 0.4, "")
    assert now.share == 0.6
    assert not now.update("refit", 1.0, "")
    assert now.update("refit", 0.3, ""), "a second pass is a step of its own"
    assert now.share == 0.3
    assert now.update("merge", 0.0, "") and now.share == 0


def test_the_share_of_the_whole_command_never_goes_back_and_the_time_left_runs():
    clock = Clock()
    now = Now(clock)
    assert now.done() is None and now.remaining() == ""
    now.update(Milestone("remove", 2, 4, 100.0), 0, "")
    clock.now = 50.0
    assert now.done() == pytest.approx(0.5) and now.remaining() == "about 50 s left".replace("50 s", about(50)[6:])
    now.update(Milestone("finetune", 3, 4, 500.0), 0, "")  # the estimate was wrong
    assert now.done() == pytest.approx(0.5)
    clock.now = 10_000.0
    assert now.remaining() == "nearly done" and now.done() == 0.99


def test_an_estimate_claims_no_more_than_it_knows():
    assert [about(s) for s in (0.1, 12, 49, 75, 600, 7300)] == [
        "about 5 s", "about 10 s", "about 50 s", "about 1 min", "about 10 min", "about 2 h 2 min",
    ]  # fmt: skip


def test_one_line_says_the_most_important_things_first():
    now = Now(Clock())
    now.update(Milestone("finetune", 5, 7, 61.0), 0, "")
    now.update("training", 0.43, "loss 0.4")
    assert short(now) == "5/7 finetune 43%, about 1 min left, training, loss 0.4"


def test_without_a_terminal_every_step_is_a_line_with_the_time(capsys: pytest.CaptureFixture[str]):
    tell = lines(lambda: "12:00:00")
    for what in ("open data", Milestone("remove", 1, 2), "refit", "refit", Milestone("merge", 2, 2, 5.0), "refit"):
        tell(what, 0.5, "")
    assert capsys.readouterr().err.splitlines() == [
        "12:00:00 open data ...",
        "12:00:00 stage 1 of 2: remove ...",
        "12:00:00   refit ...",
        "12:00:00 stage 2 of 2: merge (about 5 s left) ...",
        "12:00:00   refit ...",
    ]


def in_terminal(code: str, columns: int, **more: str) -> str:
    """What a program writes to a terminal of so many columns."""
    main, other = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "LINES": "40", "TERM": "xterm", "PYTHONPATH": str(ROOT), **more}
    running = subprocess.Popen([sys.executable, "-c", code], stdin=other, stdout=other, stderr=other, env=environment)
    os.close(other)
    said = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not part:
            break
        said += part
    os.close(main)
    assert running.wait() == 0, said
    return said.decode()


@pytest.mark.parametrize("columns", [20, 59, 80, 120])
def test_bars_fit_the_terminal_and_nothing_is_left_behind(columns: int):
    said = in_terminal(WORK, columns)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said)
    # Room for the ^C of a terminal: in a full line it would begin another one, which nobody erases.
    assert all(len(line) <= columns - 2 for part in plain.split("\n") for line in part.split("\r")), plain
    assert ("━" in plain) == (columns >= 60)
    assert ("2/3 remove" in plain) == (columns < 60) and ("stage 2 of 3: remove" in plain) == (columns >= 60)
    # The last thing before the program's own words is that the bars' lines are erased.
    before, _, after = said.partition("STOPPED")
    assert "\x1b[2K" in before and not re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\s", "", before.rpartition("\x1b[2K")[2])
    assert not after.strip()


def test_without_color_a_terminal_gets_none():
    colors = r"\x1b\[[0-9;]*3[0-9][0-9;]*m"
    assert re.search(colors, in_terminal(WORK, 80))
    assert not re.search(colors, in_terminal(WORK, 80, NO_COLOR="1"))


def test_a_terminal_that_cannot_move_its_cursor_gets_lines():
    said = in_terminal(WORK, 80, TERM="dumb")
    assert re.search(r"\d\d:\d\d:\d\d stage 2 of 3: remove \(about 2 min left\) \.\.\.", said)


def working(monkeypatch: pytest.MonkeyPatch, *flags: str) -> Any:
    """`compress run` that tells a little, warns and fails."""
    import warnings

    def run(*_: object, progress: Callable[[str, float, str], None], **__: object) -> None:
        progress(Milestone("remove", 1, 2), 0.0, "")
        progress("refit", 0.5, "conv1")
        warnings.warn("odd", CompressWarning, stacklevel=2)
        raise BadInput("no")

    monkeypatch.setattr("compress.api.run", run)
    return CliRunner().invoke(cli, ["run", __file__, *flags])


def test_json_lines_tell_progress_warnings_and_the_error(monkeypatch: pytest.MonkeyPatch):
    result = working(monkeypatch, "--log-format", "json")
    told = [json.loads(line) for line in result.stderr.splitlines()]
    assert [one["event"] for one in told] == ["progress", "progress", "warning", "error"]
    assert told[1]["stage"] == {"name": "remove", "number": 1, "count": 2}
    assert (told[1]["step"], told[1]["share"], told[1]["detail"]) == ("refit", 0.5, "conv1")
    assert told[2]["message"] == "odd"
    assert {name: told[3][name] for name in ("kind", "message", "exit_code")} == {
        "kind": "BadInput", "message": "no", "exit_code": 2,
    }  # fmt: skip
    assert all(re.match(r"\d{4}-\d\d-\d\dT", one["time"]) for one in told) and result.exit_code == 2


def test_quiet_leaves_warnings_and_the_error_alone(monkeypatch: pytest.MonkeyPatch):
    assert working(monkeypatch, "--quiet").stderr == "Warning: odd\nError: no\n"
    assert "Warning: odd" in working(monkeypatch).stderr
    told = [json.loads(line) for line in working(monkeypatch, "--quiet", "--log-format", "json").stderr.splitlines()]
    assert [one["event"] for one in told] == ["warning", "error"]


@pytest.mark.parametrize(
    ("words", "twice"),
    [
        ("run m.pt --target macs=0.5 --epochs 1 --target macs=0.2", "--target"),
        ("run m.pt -o a --out b", "--out"),
        ("run m.pt --cheap --no-cheap", "--cheap"),
        ("gate out --max-drop 1 --max-drop 2", "--max-drop"),
        ("export m.pt --format onnx --format onnx-int8", "--format"),
    ],
)
def test_of_an_option_of_one_value_that_is_given_twice_it_is_said_that_the_last_one_counts(words: str, twice: str):
    result = CliRunner().invoke(cli, words.split())
    assert result.stderr.startswith(f"Note: {twice} is given more than once; the last one counts.\n"), result.output


def test_what_may_be_repeated_and_a_flag_that_says_the_same_are_taken_without_a_word():
    words = "run m.pt --arch-kwargs a=1 --arch-kwargs b=2 --quiet --quiet"
    told = CliRunner().invoke(cli, words.split()).stderr
    assert "There is no model file m.pt" in told and "Note" not in told


# ---- tables ----------------------------------------------------------------------------------------------------------------

HEADING = ("layer", "channels", "error at half", "stays because", "MACs", "producers")
ROWS = (
    ("features.0.block.3.fc1", 1024, 0.0312, "padding cannot move across the sum add", "608.3 k", ("conv1", "conv3")),
    ("x", 2, None, None, "1", ()),
)


@pytest.mark.parametrize("columns", [20, 30, 59, 80, 120, 200])
def test_a_table_fits_and_breaks_no_name(columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    made = Console(width=columns, force_terminal=True, no_color=True, highlight=False)
    monkeypatch.setattr(tables, "console", lambda wide=False: made)
    tables.print_table(HEADING, ROWS)
    said = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    longest = len("features.0.block.3.fc1")
    assert all(len(line.rstrip()) <= max(columns, longest) for line in said.splitlines()), said
    for word in " ".join(tables.cell(value) for row in ROWS for value in row).split():
        assert re.search(rf"(^|\s){re.escape(word)}($|\s)", said), (word, said)
    for word in " ".join(HEADING[1:]).split():
        assert word in said


@pytest.mark.parametrize(("width", "split"), [(90, True), (200, False)])
def test_differences_keep_what_names_them_beside_every_figure_and_checksums_are_short(
    width: int, split: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    made = Console(width=width, force_terminal=True, no_color=True, highlight=False)
    monkeypatch.setattr(tables, "console", lambda wide=False: made)
    reason = "measured in different rounds, and other processes took the cores in all of them"
    print_differences(
        [
            Difference("finetune-and-more", "large batch latency", 0.7364, 0.7392, verdict="cannot tell", reason=reason),
            Difference("exports", "model.onnx sha256", "0" * 64, "1" * 64, 1.0, (0.5, 1.5)),
        ]
    )
    said = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    headings = [line for line in said.splitlines() if line.startswith("where")]
    assert len(headings) == 1 + split and all(line.split()[1] == "what" for line in headings), said
    assert "0" * 12 + "..." in said and "0" * 13 not in said


def test_a_sentence_is_broken_between_words_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    made = Console(width=20, force_terminal=True)
    monkeypatch.setattr(tables, "console", lambda wide=False: made)
    sentence = "Note: takes another path, /a/folder/with/a/very/long/name/out-of-here, than others"
    tables.told(sentence)
    assert capsys.readouterr().out.split() == sentence.split()


def test_notes_that_matter_come_first_and_the_others_are_counted():
    notes = ["Quality is top1.", "There is no test part: x", "Reached params=0.2, target 0.5"]
    assert weights.parted(notes) == ([notes[2], notes[1]], [notes[0]])
    many = [f"Depth: segment {n}" for n in range(9)]
    shown, rest = weights.parted([*many, *notes])
    assert shown == [notes[2], notes[1], *many[:4]] and len(rest) == 6


def test_every_beginning_that_gives_a_note_its_weight_is_that_of_a_note():
    """Who rewords a note is told here that its weight depends on how it begins."""
    made = list[str]()
    for path in (ROOT / "compress").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            first = node.values[0] if isinstance(node, ast.JoinedStr) and node.values else node
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                # Alone, a beginning is what somebody looks for, and no note.
                made += [first.value + " " * isinstance(node, ast.JoinedStr)]
    for beginning in (*weights.DIFFERS, *weights.ASSUMED, *weights.DECIDED):
        assert any(text.startswith(beginning) and text != beginning for text in made), beginning


# ---- help ------------------------------------------------------------------------------------------------------------------


def test_every_setting_stands_in_exactly_one_group_of_the_help():
    stands = [name for group in GROUPS.values() for name in group if name != "methods"]
    assert sorted(stands) == sorted(set(Recipe.model_fields) - {"model"})
    assert set(BRIEF) == set(GROUPS["Essential"])


def test_help_of_a_run_is_one_screen_and_help_all_has_everything():
    page = CliRunner().invoke(cli, ["run", "--help"], terminal_width=80).stdout
    every = CliRunner().invoke(cli, ["run", "--help-all"], terminal_width=80).stdout
    assert len(page.splitlines()) <= 40 and "--help-all shows them" in page and "--prune-of" not in page
    assert all(len(line) <= 80 for line in page.splitlines())
    options = {o for p in cli.commands["run"].params if isinstance(p, click.Option) and not p.hidden for o in p.opts}
    assert {option for option in options if not re.search(rf"{option}\b", every)} == set()
    assert [line for line in every.splitlines() if line.endswith(":") and not line.startswith(" ")] == [
        "Essential:", "This command:", *(f"{name}:" for name in GROUPS if name != "Essential"),
    ]  # fmt: skip


def test_summaries_of_commands_are_whole_sentences():
    text = CliRunner().invoke(cli, ["--help"], terminal_width=80).stdout
    told = " ".join(text.partition("Commands:")[2].partition("Exit codes")[0].split())
    assert "..." not in told and "the others are compared with." in told and text.count("--help-all") == 0


# ---- completion ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["ru"], ["run"]),
        (["run", "--method", "entrop"], ["entropic"]),
        (["run", "--methods", "entropic,rando"], ["entropic,random"]),
        (["run", "--export", "onnx,pt"], ["onnx,pt2"]),
        (["export", "--format", "pt"], ["pt2"]),
        (["run", "--arch", "torchvision", ":", "resnet1"], ["resnet101", "resnet152", "resnet18"]),
        (["run", "--minimize", "=", "la"], ["latency"]),
        (["completion", "f"], ["fish"]),
    ],
)
def test_bash_completes(words: list[str], offered: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COMP_WORDS", " ".join(["compress", *words]))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    shell = completion.Bash(cli, {}, "compress", "_COMPRESS_COMPLETE")
    assert sorted(one.partition(",")[2] for one in shell.complete().splitlines()) == offered


def test_models_and_folders_are_left_to_the_shell(monkeypatch: pytest.MonkeyPatch):
    for words in (["run", "mod"], ["gate", "ou"], ["run", "--recipe", "re"]):
        monkeypatch.setenv("COMP_WORDS", " ".join(["compress", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        assert completion.Bash(cli, {}, "compress", "_COMPRESS_COMPLETE").complete().splitlines()[0] == f"file,{words[-1]}"


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_script_is_printed_or_put_where_the_shell_looks(shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    printed = CliRunner().invoke(cli, ["completion", shell]).stdout
    assert f"{shell}_complete" in printed and "_COMPRESS_COMPLETE" in printed
    result = CliRunner().invoke(cli, ["completion", shell, "--install"])
    place = Path(completion.PLACES[shell]).expanduser()
    assert result.exit_code == 0 and str(place) in result.stdout and place.read_text().strip() == printed.strip()


def test_the_script_of_bash_is_read_by_bash():
    printed = CliRunner().invoke(cli, ["completion", "bash"]).stdout
    assert subprocess.run(["bash", "-c", f"{printed}\ncomplete -p compress"], check=True, capture_output=True).stdout


# ---- hostile places --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["methods"], ["methods", "--json"], ["--help"]])
def test_a_pipe_that_is_closed_ends_the_command_without_a_traceback(arguments: list[str]):
    running = subprocess.Popen(
        [sys.executable, "-m", "compress", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    assert running.stdout is not None and running.stderr is not None
    running.stdout.close()  # before it writes: it has yet to be imported
    said = running.stderr.read().decode()
    running.stderr.close()
    running.wait()
    assert "Traceback" not in said and "Exception" not in said, said


def test_work_goes_on_where_nobody_reads_what_is_told():
    code = (
        "import sys, os; from compress.cli.live import shown\n"
        "r, w = os.pipe(); os.close(r); os.dup2(w, 2)\n"
        "with shown() as tell:\n    [tell(f'step {n}', 0.0, '') for n in range(3)]\n"
        "print('done')\nos._exit(0 if sys.stdout.flush() is None else 1)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT).stdout == b"done\n"


def test_a_locale_that_lacks_a_character_gets_an_escape():
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    found = subprocess.run(
        [sys.executable, "-m", "compress", "diff", "é→.json", "x.json"], capture_output=True, cwd=ROOT, env=environment
    )
    assert found.returncode == 2 and found.stderr.startswith(b"Error: ") and b"\xe9\\u2192.json" in found.stderr


@pytest.mark.parametrize(
    "words",
    ["run model.pt --data digits --out aüsg", "export model.pt --out aü.onnx", "bench aü.onnx b.onnx", "tune ü.pt --data digits"],
)
def test_a_path_that_the_locale_does_not_have_is_refused_before_anything_slow(words: str, tmp_path: Path):
    (tmp_path / "model.pt").touch()
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-m", "compress", *words.split()]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and "is not UTF-8 in this locale" in done.stderr and "Set LC_ALL=C.UTF-8" in done.stderr, (
        done.stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_python_refuses_such_a_path_as_well(tmp_path: Path):
    odd = tmp_path / "a\udcff"
    (tmp_path / "model.pt").touch()
    for refused in (lambda: outputs.free(odd, force=False), lambda: compress.run(tmp_path / "model.pt", data="digits", out=odd)):
        with pytest.raises(BadInput, match="is not UTF-8 in this locale"):
            refused()


# ---- who reads only the beginning ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("methods", 0),
        ("methods --json", 0),
        ("--help", 0),
        ("completion bash", 0),
        ("gate run --max-size 1B", 5),
        ("gate run", 2),
    ],
)
def test_a_reader_who_has_seen_enough_is_no_error_and_hides_none(words: str, code: int, tmp_path: Path):
    (tmp_path / "run").mkdir()
    made = records.read(made_run(tmp_path / "run"))[0]
    result = made.stages[0].model_copy(update={"stage": "remove", "params": 9})
    (tmp_path / "run" / "report.json").write_text(made.model_copy(update={"stages": (*made.stages, result)}).to_json())
    # The pipe is closed before the first word is written.
    line = f"{sys.executable} -m compress {words} | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"{code}\n" and "roken" not in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_a_path_with_a_typing_error_is_told_before_torch_is_loaded(tmp_path: Path):
    (tmp_path / "model.pt").touch()
    for words, said in (
        (["run", "modle.pt", "--data", "digits"], "There is no model file modle.pt. Needed is"),
        (["run", "model.pt", "--data", "imgs"], "There is no data at 'imgs'. Give"),
        (["run", "--recipe", "recipe.tml"], "The recipe recipe.tml cannot be read"),
        (["run", "model.pt", "--data", "digits", "--plan", "plan.jsn"], "The plan plan.jsn cannot be read"),
        (["finetune", "model.pt", "--data", "digits", "--teacher", "big.pt"], "There is no model file big.pt."),
        (["bench", "a.onnx"], "There is no file a.onnx."),
    ):
        code = f"import sys; sys.argv = ['compress', *{words}]\nfrom compress.__main__ import main\ntry: main()\n"
        code += "except SystemExit as end: print(end.code, 'torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout == "2 False\n" and done.stderr.startswith(f"Error: {said}"), done.stderr
